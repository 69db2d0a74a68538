"""Exercise: a new endpoint, ``POST /count``, which counts the words of a text. See docs/learn/api_design.md."""

from __future__ import annotations

from aiohttp import web


async def count(request: web.Request) -> web.Response:
    """Answer ``{"text": "..."}`` with ``{"words": N}``, and a wrong request with 400 and the field's name."""
    payload = await request.json()
    return web.json_response({"words": len(payload["text"].split())})


def add(app: web.Application) -> None:
    """Add the route to the small service of ``docs/learn/service.py``."""
    app.router.add_post("/count", count)
