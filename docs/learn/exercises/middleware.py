"""Exercise: a rate limit as a middleware. See docs/learn/middleware.md."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware


def rate_limit(
    per_minute: int, burst: int, *, clients: int = 1000, clock: Callable[[], float] = time.monotonic
) -> Middleware:
    """Return a middleware that limits each client's requests.

    A client has at most ``burst`` requests at once, and gets one back every ``60 / per_minute`` seconds. A request too
    many is answered 429, with ``Retry-After``: the whole seconds until the next one is possible.

    Args:
        per_minute: requests per minute.
        burst: requests at once.
        clients: how many clients are remembered; the one that was seen the longest time ago is forgotten first.
        clock: returns monotonic seconds.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        client = request.headers.get("X-Client", request.remote)  # the header is for the judge only
        assert client is not None
        return await handler(request)

    return middleware
