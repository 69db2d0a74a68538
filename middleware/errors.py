"""The middleware that turns every raised error into a response: OpenAI's format, or RFC 9457 problem details."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.typedefs import Handler

from middleware.error_rendering import render
from runtime.errors import InternalError, InvalidRequest, MethodNotAllowed, NotFound, PayloadTooLarge, ServiceError

_log = logging.getLogger("warmstart.errors")


@web.middleware
async def errors_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Render raised errors as responses. Unexpected errors are logged with a traceback and answered without details."""
    try:
        return await handler(request)
    except Exception as error:
        # A second response inside one that has begun would be read as part of it: the connection is closed instead.
        if request.writer.output_size > 0 or (isinstance(error, ConnectionError) and _client_gone(request)):
            raise
        if isinstance(error, ServiceError):
            return render(request, error)
        if isinstance(error, web.HTTPException):
            allow = error.allowed_methods if isinstance(error, web.HTTPMethodNotAllowed) else ()
            return render(request, _translate(request, error), sorted(allow))
        _log.exception("unexpected error")
        return render(
            request, InternalError("an unexpected error occurred; the log has the details under the request id")
        )


def _client_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _translate(request: web.Request, error: web.HTTPException) -> ServiceError:
    if isinstance(error, web.HTTPNotFound):
        return NotFound("there is no route with this path; /docs lists all routes")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"{error.method} is not allowed on this path; allowed: {allowed}")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return PayloadTooLarge(f"the body is larger than {request.client_max_size} bytes (MAX_BODY_BYTES)")
    if 400 <= error.status < 500:
        return InvalidRequest((error.text or error.reason)[:200])
    raise error
