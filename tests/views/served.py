"""Applications on real ports, in threads of their own, because the browser's driver has this one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from aiohttp import web

from app import create_app
from handlers.context import Context
from runtime.settings import Settings

T = TypeVar("T")


class Served:
    """One application while it is served.

    Args:
        app: makes the application; called in the thread.
    """

    def __init__(self, app: Callable[[], web.Application]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner = self.run(self._start(app))
        self.port: int = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"

    def run(self, task: Coroutine[Any, Any, T]) -> T:
        """Do something where the application runs."""
        return asyncio.run_coroutine_threadsafe(task, self._loop).result(20)

    def stop(self) -> None:
        """Cut every connection and answer nothing more."""
        self.run(self._runner.cleanup())

    def close(self) -> None:
        """Stop, and end the thread."""
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @staticmethod
    async def _start(app: Callable[[], web.Application]) -> web.AppRunner:
        runner = web.AppRunner(app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner


@contextmanager
def served(ctx: Context, prefix: str = "", **settings: Any) -> Iterator[Served]:
    """The real application on a fake context.

    Args:
        ctx: the context.
        prefix: a path below which the same is served once more, by an application that knows nothing of it.
        settings: more than the defaults.
    """

    def make() -> web.Application:
        told = Settings.load(allowed_ips="127.0.0.0/8", **settings)
        app = create_app(told, ctx=ctx)
        if prefix:
            app.add_subapp(prefix, create_app(told, ctx=ctx))
        return app

    found = Served(make)
    try:
        yield found
    finally:
        found.close()
