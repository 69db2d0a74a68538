"""Exercise: errors of a service become answers, and leave a trace in the log. See docs/learn/errors.md."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.typedefs import Handler

log = logging.getLogger("learn")


class ServiceError(Exception):
    """An error that may be shown to a caller.

    Args:
        message: what is wrong and what to do.
        param: the field at fault, if there is one.
    """

    code, status = "internal_error", 500

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param = message, param


class InvalidRequest(ServiceError):
    """The request is wrong."""

    code, status = "invalid_request", 400


@web.middleware
async def render_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error with ``{"error": {"message", "param", "code"}}`` and an ``X-Request-Id`` header."""
    return await handler(request)
