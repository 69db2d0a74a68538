"""Renders an error as an aiohttp response, in the format of its path, and counts it."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from middleware.request_keys import ERROR_FORM, REASON, REFUSALS
from runtime.error_response import error_response
from runtime.errors import ServiceError


def render(request: web.Request, error: ServiceError, allow: Sequence[str] = ()) -> web.Response:
    """Return the error as a response, and store its code as the request's ``REASON``.

    Args:
        request: the failed request; its path decides the format, see ``ERROR_FORM``.
        error: the error.
        allow: the allowed methods, for the ``Allow`` header of a 405.
    """
    request[REASON] = error.code
    if (refusals := request.app.get(REFUSALS)) is not None:
        refusals.labels(error.code).inc()
    error_form = request.app.get(ERROR_FORM)
    response = error_response(error, "problem" if error_form is None else error_form(request.path), allow=allow)
    return web.Response(status=response.status, headers=response.headers, body=response.body)
