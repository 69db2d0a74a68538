"""aiohttp handlers for operations: build the payload from the request, answer with JSON or server-sent events."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from handlers.api.payload import body_payload, cache_headers, query_payload
from handlers.api.routes import Route
from handlers.context import Settle, free
from handlers.operations import Operation
from middleware.request_keys import CALLER, PAYLOAD, REASON
from runtime.errors import InternalError, ServiceError
from runtime.json_answer import encoded
from runtime.settings import Settings
from runtime.telemetry.request_scope import hash_credentials, request_caller, request_charge, request_usage
from runtime.types import Caller
from views.app_keys import CONTEXT

_JSON = "application/json; charset=utf-8"


_log = logging.getLogger("warmstart.app")


async def charge(most: int) -> Settle:
    """Reserve tokens of the request's rate limit, if it has one (``Context.charge``).

    Args:
        most: the largest number of tokens that the request may use.

    Returns:
        The function that commits the number of tokens used.
    """
    return await (request_charge.get() or free)(most)


def operation_handler(operation: Operation, route: Route, settings: Settings) -> Handler:
    """Return an aiohttp handler that calls an operation.

    Args:
        operation: the operation.
        route: the route, which says how the payload is built.
        settings: the application's settings.
    """

    async def adapter(request: web.Request) -> web.StreamResponse:
        request_caller.set(caller_of(request))
        payload = await _payload(request, route, settings.max_json_depth)
        if "cache_control" in operation.request.model_fields and payload.get("cache_control") is None:
            payload |= _cache_control(request)
        if settings.log_prompts and isinstance(payload, dict) and payload.keys() & {"prompt", "messages"}:
            _log.info("prompt", extra={"prompt": payload.get("prompt", payload.get("messages"))})
        request[PAYLOAD] = payload
        ctx = request.app[CONTEXT]
        if operation.stream is not None and isinstance(payload, dict) and payload.get("stream") is True:
            return await _send_events(request, operation.stream(payload, ctx))
        body = await encoded(await operation.handle(payload, ctx))
        return web.Response(body=body, headers={"Content-Type": _JSON} | _cache_headers())

    return adapter


def caller_of(request: web.Request) -> str:
    """Return an id of the caller: the key's id, or a hash of the credentials sent if none is required, or ""."""
    caller: Caller | None = request.get(CALLER)
    if caller is not None:
        return caller.id
    return hash_credentials([request.headers.getall(name, []) for name in ("Authorization", "X-API-Key")])


def _cache_control(request: web.Request) -> dict[str, str]:
    lines = request.headers.getall("Cache-Control", [])
    return {"cache_control": ", ".join(lines).encode("ascii", "ignore").decode()} if lines else {}


def _cache_headers() -> dict[str, str]:
    return cache_headers(request_usage.get() or {})


async def _payload(request: web.Request, route: Route, max_depth: int) -> dict[str, Any]:
    named = {field: request.match_info[field] for field in route.fields}
    if route.method in ("GET", "DELETE"):
        return query_payload(route, named, {name: request.query.getall(name) for name in request.query})
    body = await request.read() if request.body_exists else None
    return body_payload(named, body, request.content_type, request.charset, max_depth)


async def _send_events(request: web.Request, events: AsyncGenerator[dict[str, Any], None]) -> web.StreamResponse:
    """Send server-sent events (HTML Living Standard section 9.2) as OpenAI does: data lines, ``[DONE]`` last."""
    async with aclosing(events):
        # Errors of the request are raised by the first event, while an error status can still be sent.
        first = await anext(events, None)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            | _cache_headers()
        )
        await response.prepare(request)
        try:
            if first is not None:
                await _send(response, first)
            async for event in events:
                await _send(response, event)
            await response.write(b"data: [DONE]\n\n")
        except ServiceError as error:
            request[REASON] = error.code
            await _send(response, error.openai())
        except ConnectionError:
            raise
        except Exception:
            _log.exception("a stream failed")
            request[REASON] = InternalError.code
            await _send(response, InternalError("the stream failed").openai())
        await response.write_eof()
        return response


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")
