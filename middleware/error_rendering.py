"""Renders an error as an aiohttp response, in OpenAI's or RFC 9457's format depending on the path, and counts it."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from middleware.request_keys import REASON, REFUSALS, SPEAKS_OPENAI
from runtime.error_response import error_response
from runtime.errors import ServiceError


def render(request: web.Request, error: ServiceError, allow: Sequence[str] = ()) -> web.Response:
    """Return the error as a response, and store its code as the request's ``REASON``.

    Args:
        request: the failed request; its path decides the format, see ``SPEAKS_OPENAI``.
        error: the error.
        allow: the allowed methods, for the ``Allow`` header of a 405.
    """
    request[REASON] = error.code
    if (refusals := request.app.get(REFUSALS)) is not None:
        refusals.labels(error.code).inc()
    speaks_openai = request.app.get(SPEAKS_OPENAI)
    response = error_response(error, openai=speaks_openai is not None and speaks_openai(request.path), allow=allow)
    return web.Response(status=response.status, headers=response.headers, body=response.body)
