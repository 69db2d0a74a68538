"""One record per request in the audit log: who asked for what, from where, how it ended and what it cost.

Recorded is every request that was refused or failed, and every one that was answered by an operation. Left out are
good answers of probes (``/livez``, ``/readyz``, ``/health``), of the figures that dashboards poll (``/metrics``,
``/stats``), of CORS preflights, and of the pages and their files. Of a request's text only a keyed hash is kept; of its
headers nothing but the request and trace ids; of its address nothing behind the path. What is no HTTP never becomes a
request, and is only logged.

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
from runtime.telemetry.request_scope import request_facts, request_usage

_FIGURES = frozenset({"health", "metrics", "stats"})
_CLIENT_GONE = 499  # as in the access log
_MOST_KEYS = 100  # named in one record
_REMEMBERED = 1024  # combinations of a caller, an address and a path
_LONGEST = 512  # characters of what a stranger may make as long as they like


def audit_middleware(log: AuditLog, prompt_key: bytes, access: Access, *, required: bool = False) -> Middleware:
    """Middleware that writes the records. It is outside all that refuses, and inside the request id.

    Args:
        log: open while the application runs.
        prompt_key: for prompt hashes.
        access: names the operations.
        required: answer 503 (AuditUnavailable) and do nothing while the log fails. The request that finds out has been
            dealt with by then: its answer is withheld, unless that is a stream and has begun.
    """

    def unavailable(request: web.Request) -> web.Response:
        return render(request, AuditUnavailable("requests cannot be recorded at the moment", retry_after=1))

    def record(request: web.Request, status: int, result: str, reason: str | None, started: float) -> bool:
        operation = access.operation(request)
        if status < 400 and result == "ok" and (operation is None or operation in _FIGURES):
            return True
        facts = request_facts.get() or {}
        trace_id = facts.get("trace_id")
        usage = request_usage.get() or {}
        tokens_in, tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
        asked = ',"model":null'
        digest = ',"prompt_hash":null'
        if payload := request.get(PAYLOAD):
            model = payload.get("model")
            asked = f',"model":{_text(model if isinstance(model, str) else None)}'
            digest = f',"prompt_hash":{_text(prompt_hash(prompt_key, payload))}'
        caller = request.get(CALLER)
        who = (caller.id, caller.name) if caller else (None, None)
        path = request.path[:_LONGEST]
        # One f-string, because an encoder takes three times as long. Whatever may be a stranger's text is escaped.
        return log.append(
            "request",
            f',"request_id":{_text(facts.get("request_id"))}'
            f',"trace_id":{"null" if trace_id is None else _text(trace_id)}'
            f"{_who_and_what(*who, request.get(CLIENT_TEXT), request.remote, request.method, path, operation)}"
            f',"status":{status}'
            f',"result":"{result}"'
            f',"reason":{"null" if reason is None else _text(reason)}'
            f',"tokens_in":{"null" if tokens_in is None else tokens_in}'
            f',"tokens_out":{"null" if tokens_out is None else tokens_out}'
            f"{asked}"
            f',"duration_ms":{1e3 * (time.perf_counter() - started):.2f}{digest}',
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
            if status >= 400 or response.prepared:  # elsewhere there is none, which takes 1 us to find out
                reason = request.get(REASON)
            # A stream that fails has begun with 200, and says why in its last event.
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


@lru_cache(_REMEMBERED)
def _who_and_what(
    key: str | None,
    key_name: str | None,
    client: str | None,
    peer: str | None,
    method: str,
    path: str,
    operation: str | None,
) -> str:
    """What is the same in record after record. (Of what a stranger chooses, methods are the parser's.)"""
    return (
        f',"key":{_text(key)},"key_name":{_text(key_name)},"client":{_text(client)},"peer":{_text(peer)}'
        f',"method":{_text(method)},"path":{_text(path)},"operation":{_text(operation)}'
    )


def _text(text: str | None) -> str:
    """As JSON in ASCII, cut where a stranger could make it too long."""
    return "null" if text is None else encode_basestring_ascii(text[:_LONGEST])


def keys_recorder(log: AuditLog) -> Callable[[Set[str], Set[str]], None]:
    """What a KeyRing tells of its file's changes, as a record: which keys are new, and which are gone."""

    def changed(new: Set[str], gone: Set[str]) -> None:
        log.write("keys", {"new": sorted(new)[:_MOST_KEYS], "gone": sorted(gone)[:_MOST_KEYS]})

    return changed


def audit_context(log: AuditLog) -> Any:
    """For ``app.cleanup_ctx``, before all others: the log is open while anything else of the application is."""

    async def opened(app: web.Application) -> AsyncIterator[None]:
        log.open()
        keeping = asyncio.create_task(log.keep())
        yield
        keeping.cancel()
        await asyncio.to_thread(log.close)

    return opened
