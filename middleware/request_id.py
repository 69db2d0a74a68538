"""Assigns each request an id, which its log lines and its response carry.

A client's ``X-Request-Id`` is used if it is safe (up to 128 characters of ``A-Za-z0-9._-``); otherwise a new one is
generated. A valid W3C ``traceparent`` (Trace Context, version 00 and later) adds its trace id to the log lines and
becomes the parent of the request's spans.
"""

from __future__ import annotations

import random

from aiohttp import web
from aiohttp.typedefs import Handler
from multidict import istr

from middleware.request_keys import REQUEST_ID
from runtime.telemetry.request_scope import SAFE_REQUEST_ID, request_facts
from runtime.telemetry.tracing import continue_trace

HEADER = istr("X-Request-Id")

_TRACEPARENT_HEADER = istr("traceparent")


@web.middleware
async def request_id_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Set the request's id and trace context. It is the outermost middleware, and never refuses a request."""
    headers = request.headers
    received = headers.get(HEADER)
    request_id = received if received is not None and SAFE_REQUEST_ID.fullmatch(received) else _new_id()
    request[REQUEST_ID] = request_id
    facts: dict[str, object] = {"request_id": request_id}
    parent = headers.get(_TRACEPARENT_HEADER)
    facts |= continue_trace(parent, "" if parent is None else ",".join(headers.getall("tracestate", ())))
    token = request_facts.set(facts)
    try:
        return await handler(request)
    finally:
        request_facts.reset(token)


def _new_id() -> str:
    """Return a random id. It is not a secret, so it avoids the system's random source, which takes 6 us."""
    return f"{random.getrandbits(128):032x}"


def set_request_id_header(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Set ``X-Request-Id`` on a response (for ``header_signal``), streams and errors included."""
    if (request_id := request.get(REQUEST_ID)) is not None:
        response.headers[HEADER] = request_id
