"""Runs a real nginx with a given configuration."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is missing: apt-get install nginx-light")


@contextmanager
def nginx(folder: Path, configuration: str, port: int) -> Iterator[None]:
    """Run nginx during the block, which starts once it listens.

    Args:
        folder: a folder for the configuration and for its messages at startup.
        configuration: the complete ``nginx.conf``.
        port: the port on which it will listen.
    """
    (folder / "nginx.conf").write_text(configuration)
    # Started by root, its workers would run as another user without access to pytest's folder.
    directives = "daemon off;" + (" user root;" if os.getuid() == 0 else "")
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen([str(NGINX), "-c", f"{folder}/nginx.conf", "-g", directives], stderr=stderr)
    try:
        end = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < end:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        else:
            pytest.fail((folder / "stderr").read_text())
        yield
    finally:
        process.terminate()
        process.wait(10)
