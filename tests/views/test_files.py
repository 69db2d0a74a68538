"""Files of the pages: a client that does not take one does not hold the connection."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from tests.support.fakes import until
from views.pages import BoundedFile


async def test_a_client_that_stops_reading_a_file(tmp_path: Path) -> None:
    """The connection is cut when the time is up, though the client never closes it; others are served meanwhile."""
    large, small = tmp_path / "large", tmp_path / "small"
    with large.open("wb") as file:
        file.truncate(200_000_000)
    small.write_text("small")

    async def handler(request: web.Request) -> web.StreamResponse:
        return BoundedFile(tmp_path / request.path[1:], seconds=0.3)

    app = web.Application()
    app.router.add_get("/{name}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        assert runner.server is not None
        _, stalled = await asyncio.open_connection(*runner.addresses[0][:2])
        stalled.transport.pause_reading()
        stalled.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: runner.server and len(runner.server.connections) == 1)
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        writer.write(b"GET /small HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"small")
        await until(lambda: runner.server and not runner.server.connections)
        stalled.close()
        writer.close()
    finally:
        await runner.cleanup()
