"""Gives builds this machine's settings of pip, whose local folders a server on the loopback interface has for them."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


def listed() -> dict[str, str]:
    """Return pip's settings as ``section.option`` -> value; the environment goes before the files."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = {}
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        found[key.replace(":env:", "global")] = str(ast.literal_eval(value))
    return found


def translated(settings: dict[str, str], url: str) -> tuple[str, set[Path]]:
    """Return a pip.conf for builds.

    Args:
        settings: from ``listed``.
        url: the base URL under which builds find this machine's files.

    Returns:
        The file's text, in which local folders and files are URLs; and the folders that these need. The file of
        certificates stays a path, because the base tree has it.
    """
    config = configparser.RawConfigParser()
    folders = set()
    for key, value in settings.items():
        section, _, option = key.partition(".")
        words = []
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            local = option != "cert" and path.is_absolute() and path.exists()
            words.append(f"{url}{path}{'/' if path.is_dir() else ''}" if local else word)
            if local:
                # An index's pages link to the files beside it.
                folders.add(path.parent if option.endswith("index-url") or path.is_file() else path)
        if not config.has_section(section):
            config.add_section(section)
        config[section][option] = " ".join(words)
    lines = [f"[{section}]\n" + "".join(f"{k} = {v}\n" for k, v in config[section].items()) for section in config]
    return "".join(lines[1:]), folders


@contextmanager
def pip_conf(file: Path) -> Iterator[None]:
    """Write a pip.conf for builds on the host's network, and serve the folders that it names during the block."""

    class _Files(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            """Return the file of a URL's path; one that does not exist outside the folders."""
            wanted = Path(unquote(urlsplit(path).path)).resolve()
            return str(wanted if any(wanted.is_relative_to(folder) for folder in folders) else file / "missing")

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    folders: set[Path] = set()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Files) as server:
        text, named = translated(listed(), f"http://127.0.0.1:{server.server_port}")
        folders |= {folder.resolve() for folder in named}
        file.write_text(text)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            file.unlink()
