"""The service that the exercises start from: one route, one toy model, and none of what they add."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

RHYME = "twinkle twinkle little star how i wonder what you are up above the world so high like a diamond in the sky"


class ToyModel:
    """Continues a text with the words that follow its last word in a rhyme. It is slow only if told to be.

    Args:
        words: the text to imitate.
    """

    def __init__(self, words: str = RHYME) -> None:
        self._words = words.split()
        self.calls = 0

    def complete(self, prompt: str, max_tokens: int) -> str:
        """Return a continuation of a prompt, a word for each token."""
        self.calls += 1
        last = (prompt.lower().split() or [""])[-1]
        start = self._words.index(last) + 1 if last in self._words else 0
        return " ".join((self._words[start:] + self._words)[:max_tokens])


MODEL = web.AppKey("model", ToyModel)


async def complete(request: web.Request) -> web.Response:
    """Answer ``POST /complete``. Whatever is wrong with the request becomes a 500."""
    payload = await request.json()
    return web.json_response({"text": request.app[MODEL].complete(payload["prompt"], payload["max_tokens"])})


def create_app(
    middlewares: Sequence[Any] = (), add: Callable[[web.Application], None] | None = None, model: ToyModel | None = None
) -> web.Application:
    """Return the application.

    Args:
        middlewares: aiohttp's middlewares, the outermost first.
        add: a function that adds routes.
        model: the model; by default a new one.
    """
    app = web.Application(middlewares=middlewares)
    app[MODEL] = model or ToyModel()
    app.router.add_post("/complete", complete)
    if add is not None:
        add(app)
    return app
