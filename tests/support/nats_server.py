"""The tests' real NATS: streams per test, servers per test, and skips that say how to start one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from runtime.events.queues.base import QueueOptions

NATS_URL = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")


@asynccontextmanager
async def real_nats(url: str = NATS_URL) -> AsyncIterator[Client]:
    """Yield a client of the server; skip the test if the shared server does not answer."""
    try:
        client = await nats.connect(url, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0)
    except (nats.errors.Error, OSError):
        if url != NATS_URL:
            raise
        pytest.skip("no NATS answers at NATS_URL; start one: nats-server -js -a 127.0.0.1 -p 4222 -sd /var/lib/nats")
    try:
        yield client
    finally:
        with suppress(nats.errors.Error, OSError):
            await client.close()


@asynccontextmanager
async def own_streams(url: str = NATS_URL, **changes: Any) -> AsyncIterator[QueueOptions]:
    """Yield options with stream names of this test only; the streams are deleted afterwards.

    Args:
        url: the server's URL.
        changes: changes to the options.
    """
    own = f"test-{uuid4().hex[:12]}"
    options = QueueOptions(
        url=url,
        stream=own,
        group="workers",
        results=f"{own}-results",
        dead=f"{own}-dead",
        ack_seconds=30,
        reply_prefixes=("_INBOX.", "warmstart."),
    )
    options = replace(options, **changes)
    async with real_nats(url):
        pass
    try:
        yield options
    finally:
        with suppress(nats.errors.Error, OSError):  # a failed test may have left its server stopped
            client = await nats.connect(url, allow_reconnect=False, max_reconnect_attempts=1)
            for name in (options.stream, options.results, options.dead):
                with suppress(NotFoundError):
                    await client.jetstream().delete_stream(name)
            await client.close()


class NatsServer:
    """A nats-server with JetStream for one test, which keeps its port and folder over restarts.

    Args:
        folder: the folder for its streams.
        config: lines of a configuration file.
    """

    def __init__(self, folder: Path, config: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        self._file = folder / "nats.conf"
        self._file.write_text(config)
        self.arguments: list[str | Path] = ["-js", "-a", "127.0.0.1", "-sd", folder]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        self._process = subprocess.Popen(
            ["nats-server", *self.arguments, "-p", str(self.port), "-c", self._file],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 20
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                if connection.recv(4) == b"INFO":
                    return
            assert self._process.poll() is None, "nats-server ended"
            assert time.monotonic() < end, "nats-server does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def own_nats_server(folder: Path, config: str = "") -> Iterator[NatsServer]:
    """Run a ``NatsServer`` during the block; skip the test if it is not installed."""
    if shutil.which("nats-server") is None:
        pytest.skip("nats-server is not installed: apt-get install nats-server")
    server = NatsServer(folder, config)
    server.start()
    try:
        yield server
    finally:
        server.kill()
