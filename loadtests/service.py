"""Runs the real service as a child process for tests and measurements, started as users start it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = "import sys, server; sys.exit(server.main(sys.argv[1:]))"
"""The command ``warmstart`` of this tree, for ``python -c``."""
_POLL_SECONDS = 0.01
_END_SECONDS = 45  # longer than the service's own drain


@dataclass(frozen=True)
class Service:
    """A running service process. ``started`` is its start in ``time.perf_counter`` seconds."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    started: float

    @property
    def url(self) -> str:
        """The service's base URL."""
        return f"http://127.0.0.1:{self.port}"

    def connect(self, timeout: float = 600) -> http.client.HTTPConnection:
        """Return a new HTTP connection to the service."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def wait(self, path: str, seconds: float = 300) -> float:
        """Poll a path until it answers 200.

        Args:
            path: the path to request.
            seconds: the time limit, counted from the process's start.

        Returns:
            Seconds since the process's start.

        Raises:
            RuntimeError: the process has ended, or the time is up; the message ends with its log.
        """
        while (since := time.perf_counter() - self.started) < seconds and self.process.poll() is None:
            connection = self.connect(timeout=5)
            try:
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return time.perf_counter() - self.started
            except (OSError, http.client.HTTPException):
                pass  # not listening yet
            finally:
                connection.close()
            time.sleep(_POLL_SECONDS)
        log = self.log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{path} is not 200 after {since:.0f} s (exit status {self.process.poll()}):\n{log}")

    def memory(self) -> dict[str, int]:
        """Return resident memory in MB (10^6 bytes): ``rss`` now and ``peak``. Linux only."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return {
            name: int(fields[key].split()[0]) * 1024 // 10**6 for name, key in (("rss", "VmRSS"), ("peak", "VmHWM"))
        }


@contextmanager
def running_service(*command: str, **environment: str) -> Iterator[Service]:
    """Run ``python server.py`` on a free loopback port during the block. The service may not be ready yet.

    Args:
        command: a ``warmstart`` subcommand with its arguments to run instead. ``--port`` is added to it.
        environment: settings that override those of this process.
    """
    port = free_port()
    run = ["-c", PROGRAM, *command, "--port", str(port)] if command else ["server.py"]
    settings = os.environ | {"HOST": "127.0.0.1", "PORT": str(port)} | environment
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "service.log"
        with log.open("wb") as output:
            started = time.perf_counter()
            process = None
            try:
                with interrupts_deferred():
                    process = subprocess.Popen(
                        [sys.executable, *run], cwd=ROOT, env=settings, stdout=output, stderr=subprocess.STDOUT
                    )
                yield Service(port, process, log, started)
            finally:
                if process:
                    process.terminate()
                    try:
                        process.wait(_END_SECONDS)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Handle Ctrl-C, SIGTERM and SIGHUP after the block instead of within it.

    An exception that a signal handler raises inside ``subprocess.Popen`` would leave a started process that nobody can
    end. Only handlers written in Python are replaced, so the new process ignores what this one ignores.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main thread only
        yield
        return
    received: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    try:
        for number in handlers:
            signal.signal(number, lambda received_number, _: received.append(received_number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for received_number in received:
            signal.raise_signal(received_number)


def free_port() -> int:
    """Return a port on which nothing listens at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
