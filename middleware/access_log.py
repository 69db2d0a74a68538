"""The access log: one line per request with method, path, status, duration, client address and token counts."""

from __future__ import annotations

import asyncio
import logging
import time

from aiohttp import web
from aiohttp.typedefs import Handler

from middleware.request_keys import CLIENT_TEXT
from runtime.telemetry.logging import log_facts
from runtime.telemetry.request_scope import RequestScope, UsageCounter, request_scope

_log = logging.getLogger("warmstart.access")

# Polled every few seconds, so logged at INFO only when they fail.
_QUIET = frozenset({"/livez", "/readyz", "/ping", "/health", "/load", "/metrics", "/stats"})
_CLIENT_GONE = 499  # nginx's status for a client that closed the connection before the response


@web.middleware
async def access_log_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Log one line per request.

    It runs inside the request id middleware, so that its line carries the id, and outside every middleware that may
    refuse a request.
    """
    started = time.perf_counter()
    status = 500
    usage = UsageCounter()
    request_scope.set(RequestScope(usage=usage))  # also ends the scope of the previous request on this connection
    try:
        response = await handler(request)
        status = response.status
        return response
    except (asyncio.CancelledError, ConnectionError):
        status = _CLIENT_GONE
        raise
    finally:
        level = logging.DEBUG if request.path in _QUIET and status < 400 else logging.INFO
        if _log.isEnabledFor(level):
            facts = {
                "status": status,
                "duration_ms": round(1e3 * (time.perf_counter() - started), 2),
                "client": request.get(CLIENT_TEXT),
                **usage.tokens,
            }
            if usage.total is not None and usage.total.cache is not None:
                facts["cache"] = usage.total.cache.status
            log_facts(_log, level, f"{request.method} {request.path}", facts)
