"""All middlewares on a real port, and raw bytes sent to and received from it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiohttp import web

import middleware
from middleware.access import Access
from middleware.connection.runner import DeadlineRunner
from middleware.connection.tls import Tls, tls_of
from runtime.settings import Settings

PATIENCE = 10.0
"""The time limit in seconds of everything that must happen; no test asserts a speed with it."""


class Echo:
    """An application of one handler behind all middlewares, which records the requests that reach it."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings.load(**settings)
        self.app = web.Application(client_max_size=self.settings.max_body_bytes)
        self.seen: list[tuple[str, str, bytes]] = []
        self.requests: list[web.Request] = []
        self.runner: DeadlineRunner | None = None
        self.tls: Tls | None = None
        middleware.install(self.app, self.settings, Access())

        async def handler(request: web.Request) -> web.Response:
            self.seen.append((request.method, request.path, await request.read()))
            self.requests.append(request)
            return web.Response(text="ok\n")

        self.app.router.add_route("*", "/{path:.*}", handler)

    @asynccontextmanager
    async def listening(self, **runner: Any) -> AsyncIterator[int]:
        """Serve the application as ``server.serve`` does during the block, and yield its port."""
        self.tls = tls_of(self.settings)
        options: dict[str, Any] = {"lingering_time": 0.2, "access_log": None, "shutdown_timeout": 0.1}
        self.runner = DeadlineRunner.of(self.app, self.settings, self.tls, **(options | runner))
        await self.runner.setup()
        try:
            await web.TCPSite(self.runner, "127.0.0.1", 0).start()
            yield self.runner.addresses[0][1]
        finally:
            await self.runner.cleanup()


async def exchange(port: int, raw: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """Send bytes, and return all bytes received until the server closes the connection."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=tls, server_hostname="localhost" if tls else None
        )
        answer = b""
        with suppress(ConnectionError):
            writer.write(raw)
            while chunk := await reader.read(65_536):
                answer += chunk
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return answer


def statuses(answer: bytes) -> list[int]:
    """Return the status codes of the responses in these bytes."""
    return [int(line.split()[1]) for line in answer.split(b"\n") if line.startswith(b"HTTP/")]


def head(answer: bytes) -> dict[str, str]:
    """Return the header fields of the first response, names in lower case."""
    lines = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
