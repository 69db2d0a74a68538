"""The server under test in ``edge_bench``: a handler that validates a JSON body behind the first N middlewares.

Unlike other load tests it imports the service: the middlewares are those that ``middleware.install`` installs for the
settings in the environment.
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web
from pydantic import BaseModel

import middleware
from middleware.access import Access
from middleware.connection.runner import DeadlineRunner
from runtime.settings import Settings
from runtime.telemetry.logging import setup_logging


class EdgeQuestion(BaseModel):
    """The request body, the same as in the FastAPI application."""

    prompt: str
    max_new_tokens: int = 16


async def answer(request: web.Request) -> web.Response:
    """Read and validate the body, and answer."""
    question = EdgeQuestion.model_validate_json(await request.read())
    return web.json_response({"characters": len(question.prompt)})


def full(settings: Settings) -> web.Application:
    """Return the handler behind all middlewares that the settings turn on."""
    app = web.Application(client_max_size=settings.max_body_bytes)
    access = Access(operations={answer: "generate"})
    middleware.install(app, settings, access)
    app.router.add_post("/generate", answer)
    return app


def names() -> list[str]:
    """Return the names of the middlewares that the settings turn on, outermost first."""
    return [getattr(one, "__name__", "?").removesuffix("_middleware") for one in full(Settings.load()).middlewares]


async def serve(port: int, count: int, *, bare: bool) -> None:
    """Serve until the process is killed.

    Args:
        port: the port on the loopback.
        count: the number of middlewares, from the outermost; a number above theirs gives all of them, and the headers
            of each answer.
        bare: whether to use aiohttp's own runner and nothing of the service.
    """
    settings = Settings.load()
    setup_logging(settings.log_format, settings.log_level)
    runner: web.AppRunner
    if bare:
        app = web.Application()
        app.router.add_post("/generate", answer)
        runner = web.AppRunner(app, access_log=None)
    else:
        app = full(settings)
        if count < len(app.middlewares):
            del app.middlewares[count:]
            app.on_response_prepare.clear()
        runner = DeadlineRunner.of(app, settings, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), bare=sys.argv[2] == "-1"))
