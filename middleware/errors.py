"""Renders every error, once, in the shape its route speaks: OpenAI's, or RFC 9457 problem details."""

from __future__ import annotations

import logging
import math

from aiohttp import web
from aiohttp.typedefs import Handler

from middleware.request_keys import REASON, REFUSALS
from runtime.errors import InternalError, InvalidRequest, MethodNotAllowed, NotFound, PayloadTooLarge, ServiceError

_log = logging.getLogger("warmstart.errors")

_OPENAI_PREFIX = "/v1/"
_OPENAI_PATHS = frozenset({"/chat/completions", "/v1"})


@web.middleware
async def errors_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns whatever was raised into an answer. What is not ours is logged whole and answered without a word of it."""
    try:
        return await handler(request)
    except Exception as error:
        # A second answer inside one that has begun would be read as part of it: the connection is cut instead.
        if request.writer.output_size > 0 or (isinstance(error, ConnectionError) and _client_gone(request)):
            raise
        if isinstance(error, ServiceError):
            return render(request, error)
        if isinstance(error, web.HTTPException):
            return render(request, _translate(request, error), error)
        _log.exception("unexpected error")
        return render(request, InternalError("something went wrong here; the request id finds it in the log"))


def _client_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def speaks_openai(path: str) -> bool:
    """Whether errors on this path have OpenAI's shape."""
    return path in _OPENAI_PATHS or path.startswith(_OPENAI_PREFIX)


def render(request: web.Request, error: ServiceError, cause: web.HTTPException | None = None) -> web.Response:
    """The error as an answer."""
    request[REASON] = error.code
    if (refusals := request.app.get(REFUSALS)) is not None:
        refusals.labels(error.code).inc()
    openai = speaks_openai(request.path)
    response = web.json_response(
        error.openai() if openai else error.problem(),
        status=error.status,
        content_type="application/json" if openai else "application/problem+json",
    )
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.challenge is not None:
        response.headers["WWW-Authenticate"] = error.challenge
    if cause is not None and "Allow" in cause.headers:
        response.headers["Allow"] = cause.headers["Allow"]
    return response


def _translate(request: web.Request, error: web.HTTPException) -> ServiceError:
    if isinstance(error, web.HTTPNotFound):
        return NotFound("there is nothing at this path; /docs lists what there is")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"{error.method} is not possible here; allowed: {allowed}")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return PayloadTooLarge(f"the body is larger than {request.client_max_size} bytes (MAX_BODY_BYTES)")
    if 400 <= error.status < 500:
        return InvalidRequest((error.text or error.reason)[:200])
    raise error
