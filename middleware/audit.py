"""Writes one audit record per request: caller, operation, addresses, status, duration and token counts.

Every request that was refused or failed is recorded, and every request for an operation. Left out are successful
responses of probes (``/livez``, ``/readyz``, ``/ping``, ``/health``), of the statistics that dashboards poll
(``/metrics``, ``/stats``), of CORS preflights, and of the web pages and their files. Of a request's text only a keyed
hash is stored; of its headers only the request and trace ids; of its URL only the path. Input that is not valid HTTP
never becomes a request, and is only logged.

``result`` is ``ok``, ``refused`` (4xx), ``failed`` (5xx, or a stream that broke off) or ``client_gone``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Set
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from middleware.access import Access
from middleware.error_rendering import render
from middleware.request_keys import CALLER, CLIENT_TEXT, PAYLOAD, REASON
from runtime.audit.chain import prompt_hash
from runtime.audit.log import AuditLog
from runtime.errors import AuditUnavailable
from runtime.telemetry.request_scope import request_facts, request_scope

_STATISTICS = frozenset({"health", "metrics", "stats"})
_CLIENT_GONE = 499  # as in the access log
_MAX_KEYS = 100  # key ids listed in one record
_CACHE_SIZE = 1024  # cached combinations of caller, address and path
_MAX_CHARS = 512  # characters of each client-controlled text


def audit_middleware(log: AuditLog, prompt_key: bytes, access: Access, *, required: bool = False) -> Middleware:
    """Return the middleware that writes the records.

    It runs inside the request id middleware, and outside every middleware that may refuse a request.

    Args:
        log: the audit log; it must be open while the application runs.
        prompt_key: the key for prompt hashes.
        access: the access rules, which name each request's operation.
        required: answer 503 (AuditUnavailable) without running the handler while the log fails, except on open
            routes. The request whose record fails first has already run: its response is replaced by the 503, unless
            it is a stream that has begun.
    """

    def unavailable(request: web.Request) -> web.Response:
        return render(request, AuditUnavailable("requests cannot be recorded at the moment", retry_after=1))

    def record(request: web.Request, status: int, result: str, reason: str | None, started: float) -> bool:
        operation = access.operation(request)
        if status < 400 and result == "ok" and (operation is None or operation in _STATISTICS):
            return True
        facts = request_facts.get() or {}
        trace_id = facts.get("trace_id")
        usage = request_scope.get().usage
        total = None if usage is None else usage.total
        model_member = ',"model":null'
        hash_member = ',"prompt_hash":null'
        if payload := request.get(PAYLOAD):
            model = payload.get("model")
            model_member = f',"model":{_text(model if isinstance(model, str) else None)}'
            hash_member = f',"prompt_hash":{_text(prompt_hash(prompt_key, payload))}'
        caller = request.get(CALLER)
        key_fields = (caller.id, caller.name) if caller else (None, None)
        path, client = request.path[:_MAX_CHARS], request.get(CLIENT_TEXT)
        # One f-string, because a JSON encoder takes three times as long. All client-controlled text is escaped.
        return log.append(
            "request",
            f',"request_id":{_text(facts.get("request_id"))}'
            f',"trace_id":{"null" if trace_id is None else _text(trace_id)}'
            f"{_repeated_members(*key_fields, client, request.remote, request.method, path, operation)}"
            f',"status":{status}'
            f',"result":"{result}"'
            f',"reason":{"null" if reason is None else _text(reason)}'
            f',"tokens_in":{"null" if total is None else total.prompt_tokens}'
            f',"tokens_out":{"null" if total is None else total.completion_tokens}'
            f"{model_member}"
            f',"duration_ms":{1e3 * (time.perf_counter() - started):.2f}{hash_member}',
        )

    @web.middleware
    async def audit(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        status, result, reason = 500, "failed", None
        try:
            if required and log.failing and not access.is_open(request):
                response: web.StreamResponse = unavailable(request)
            else:
                response = await handler(request)
            status = response.status
            if status >= 400 or response.prepared:  # otherwise there is no REASON, and the lookup takes 1 us
                reason = request.get(REASON)
            # A stream that fails has already sent status 200; its last event carries the error.
            result = "refused" if 400 <= status < 500 else "ok" if status < 400 and reason is None else "failed"
        except (asyncio.CancelledError, ConnectionError):
            status, result = _CLIENT_GONE, "client_gone"
            raise
        finally:
            recorded = record(request, status, result, reason, started)
        if required and not recorded and not response.prepared:
            return unavailable(request)
        return response

    return audit


@lru_cache(_CACHE_SIZE)
def _repeated_members(
    key: str | None,
    key_name: str | None,
    client: str | None,
    peer: str | None,
    method: str,
    path: str,
    operation: str | None,
) -> str:
    """Return the JSON members that repeat from record to record, cached. The HTTP parser limits the methods."""
    return (
        f',"key":{_text(key)},"key_name":{_text(key_name)},"client":{_text(client)},"peer":{_text(peer)}'
        f',"method":{_text(method)},"path":{_text(path)},"operation":{_text(operation)}'
    )


def _text(text: str | None) -> str:
    """Return a text as an ASCII JSON string, cut to the first 512 characters; ``null`` for None."""
    return "null" if text is None else encode_basestring_ascii(text[:_MAX_CHARS])


def keys_recorder(log: AuditLog) -> Callable[[Set[str], Set[str]], None]:
    """Return a ``KeyRing.on_change`` callback that records the ids of added and removed keys."""

    def record_change(added: Set[str], removed: Set[str]) -> None:
        log.write("keys", {"new": sorted(added)[:_MAX_KEYS], "gone": sorted(removed)[:_MAX_KEYS]})

    return record_change


def audit_context(log: AuditLog) -> Any:
    """Return an ``app.cleanup_ctx`` generator that opens the log at startup and closes it at the end.

    It must come before all others, so that the log is open while any other part of the application is.
    """

    async def opened(app: web.Application) -> AsyncIterator[None]:
        log.open()
        keeping = asyncio.create_task(log.keep())
        yield
        keeping.cancel()
        await asyncio.to_thread(log.close)

    return opened
