"""The tests' real Redis: its URL, key names per test, and a skip that says how to start one."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis

from tests.attacks.fault_proxy import FaultProxy

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")


@contextmanager
def real_redis(**options: Any) -> Iterator[redis.Redis]:
    """Yield a client with these options; skip the test if the server does not answer."""
    server = redis.Redis.from_url(REDIS_URL, socket_connect_timeout=1, **options)
    try:
        try:
            server.ping()
        except redis.RedisError:
            pytest.skip("no Redis answers at REDIS_URL; start one: redis-server --port 6379 --save '' --appendonly no")
        yield server
    finally:
        server.close()


@contextmanager
def own_names(form: str = "{}") -> Iterator[str]:
    """Yield a key prefix of this test only; keys with it are deleted afterwards.

    Args:
        form: a template of the prefix, with a pair of braces for the unique part.
    """
    with real_redis() as server:
        prefix = form.format(f"warmstart-test:{uuid4().hex}")
        yield prefix
        if left := list(server.scan_iter(f"{prefix}*")):
            server.delete(*left)


@asynccontextmanager
async def proxied_redis(server: str = REDIS_URL) -> AsyncIterator[tuple[FaultProxy, str]]:
    """Yield a fault proxy in front of a Redis, and the URL that goes through it.

    Args:
        server: the URL of the Redis, by default the shared one.
    """
    url = urlsplit(server)
    if server == REDIS_URL:
        with real_redis():
            pass
    async with FaultProxy(url.hostname or "127.0.0.1", url.port or 6379) as proxy:
        who = url.netloc.rpartition("@")[0]
        netloc = f"{who}@127.0.0.1:{proxy.port}" if who else f"127.0.0.1:{proxy.port}"
        yield proxy, url._replace(netloc=netloc).geturl()


class OwnRedis:
    """A Redis for one test, which persists acknowledged writes and can be killed and restarted.

    Args:
        folder: the folder for its files.
        password: the password that it requires.
    """

    def __init__(self, folder: Path, password: str = "") -> None:
        if shutil.which("redis-server") is None:
            pytest.skip("redis-server is missing: apt-get install redis-server")
        folder.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"
        self._command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--requirepass", password]
        self._process: Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._process = Popen(self._command, stdout=DEVNULL)
        with redis.Redis.from_url(self.url) as server:
            for _ in range(1000):
                with suppress(redis.RedisError):
                    server.ping()
                    return
                time.sleep(0.01)
        raise AssertionError("redis-server does not answer")

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
