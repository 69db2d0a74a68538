"""The service as an ASGI application behind uvicorn, with a fake context: what ``deploy/ray`` runs, without Ray."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from deploy.ray.asgi import AsgiApplication, Backend, ForwardedRequest
from deploy.ray.memory_connection import exchange
from handlers.context import Context
from runtime.settings import Settings
from tests.support.fakes import running_app, until


@asynccontextmanager
async def local_backend(ctx: Context | None = None, **settings: object) -> AsyncIterator[tuple[Backend, Settings]]:
    """Yield a backend on the real application in this process, and its settings. Arguments as for ``fakes.serving``."""
    async with running_app(ctx, **settings) as (runner, loaded):
        assert runner.server is not None
        server = runner.server

        async def backend(request: ForwardedRequest) -> AsyncGenerator[bytes, None]:
            async for data in exchange(server(), request.data, request.peer, tls=request.tls):
                yield data

        yield backend, loaded


@asynccontextmanager
async def serving_asgi(ctx: Context | None = None, **settings: object) -> AsyncIterator[str]:
    """As ``fakes.serving``, through ASGI and uvicorn, which trusts no proxy's headers of its own accord."""
    async with local_backend(ctx, **settings) as (backend, loaded):
        config = uvicorn.Config(
            AsgiApplication(backend, loaded),
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            loop="asyncio",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        listening = socket.create_server(("127.0.0.1", 0))
        running = asyncio.create_task(server._serve([listening]))  # ``serve`` would take this process's signals
        try:
            await until(lambda: server.started)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running
            listening.close()
