"""nginx with the shipped configuration before a service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.service import ROOT, free_port
from tests.support.nginx import nginx


@dataclass(frozen=True)
class Nginx:
    """A running nginx."""

    port: int
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        """Its access log."""
        return [json.loads(line) for line in self.log.read_text(errors="replace").splitlines()]


@contextmanager
def running_nginx(folder: Path, upstream: int) -> Iterator[Nginx]:
    """Run it on a free port of the loopback, everything it writes in ``folder``; it gives slow clients a second.

    Args:
        folder: of this one's own.
        upstream: the service's port.
    """
    port = free_port()
    text = (ROOT / "deploy/nginx.conf").read_text()
    for shipped, here in (
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("server warmstart:8000;", f"server 127.0.0.1:{upstream};"),
        ("/tmp/", f"{folder}/"),
        ("/dev/stdout", f"{folder}/access.log"),
        ("/dev/stderr", f"{folder}/error.log"),
        ("client_header_timeout 15s;", "client_header_timeout 1s;"),
        ("client_body_timeout 30s;", "client_body_timeout 1s;"),
    ):
        assert shipped in text
        text = text.replace(shipped, here)
    with nginx(folder, text, port):
        yield Nginx(port, folder / "access.log")
