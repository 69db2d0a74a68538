"""Names each request: every log line it causes and its answer carry the name.

A caller's ``X-Request-Id`` is kept if it is harmless (128 characters of ``A-Za-z0-9._-``), else a new one is made. A
valid W3C ``traceparent`` (Trace Context, version 00 and later) gives the log lines its trace id and is spans' parent.
"""

from __future__ import annotations

import random

from aiohttp import web
from aiohttp.typedefs import Handler
from multidict import istr

from middleware.request_keys import REQUEST_ID
from runtime.telemetry.request_scope import SAFE_REQUEST_ID, request_facts
from runtime.telemetry.tracing import caller_trace, parse_traceparent

HEADER = istr("X-Request-Id")

_TRACEPARENT_HEADER = istr("traceparent")
_TRACE_HEADERS = ("traceparent", "tracestate")


@web.middleware
async def request_id_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outermost: it only names, so it can refuse nothing."""
    headers = request.headers
    given = headers.get(HEADER)
    request_id = given if given is not None and SAFE_REQUEST_ID.fullmatch(given) else _new()
    request[REQUEST_ID] = request_id
    facts: dict[str, object] = {"request_id": request_id}
    parent = headers.get(_TRACEPARENT_HEADER)
    trace = parse_traceparent(parent) if parent is not None else None
    if trace:
        facts["trace_id"], facts["parent_id"] = trace
        caller_trace.set({name: ",".join(headers.getall(name, ())) for name in _TRACE_HEADERS})
    else:
        caller_trace.set(None)  # the connection's last request may have had one
    token = request_facts.set(facts)
    try:
        return await handler(request)
    finally:
        request_facts.reset(token)


def _new() -> str:
    """A name and no secret: the system's randomness would take 6 us."""
    return f"{random.getrandbits(128):032x}"


def set_request_id_header(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """For ``header_signal``: streams and errors carry the id too."""
    if (request_id := request.get(REQUEST_ID)) is not None:
        response.headers[HEADER] = request_id
