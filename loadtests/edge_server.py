"""The server of ``edge_bench``: a handler that validates a JSON body, behind the first N of our middlewares.

It looks inside: they are those that ``middleware.install`` puts together from the settings in the environment.
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
    """The body, as FastAPI's side has it."""

    prompt: str
    max_new_tokens: int = 16


async def answer(request: web.Request) -> web.Response:
    """The work: read, validate, answer."""
    question = EdgeQuestion.model_validate_json(await request.read())
    return web.json_response({"characters": len(question.prompt)})


def full(settings: Settings) -> web.Application:
    """The handler behind everything that the settings turn on."""
    app = web.Application(client_max_size=settings.max_body_bytes)
    access = Access(operations={answer: "generate"})
    middleware.install(app, settings, access)
    app.router.add_post("/generate", answer)
    return app


def names() -> list[str]:
    """Of the middlewares that the settings turn on, outermost first."""
    return [getattr(one, "__name__", "?").removesuffix("_middleware") for one in full(Settings.load()).middlewares]


async def serve(port: int, count: int, *, bare: bool) -> None:
    """Serve until killed.

    Args:
        port: of the loopback.
        count: of middlewares, from the outermost; more than there are gives all, and the headers of each answer.
        bare: aiohttp's own runner and nothing of ours.
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
