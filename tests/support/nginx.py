"""A real nginx, with whatever configuration."""

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
    """Run it, from when it listens.

    Args:
        folder: its own; the configuration is written there, and what it says at the start.
        configuration: the whole of ``nginx.conf``.
        port: that it will listen on.
    """
    (folder / "nginx.conf").write_text(configuration)
    # As root its workers would become another user, who cannot enter pytest's folder.
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
