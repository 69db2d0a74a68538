"""aiohttp handlers for operations: build the payload from the request, answer with JSON or server-sent events."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from handlers.api.payload import body_payload, cache_headers, query_payload
from handlers.api.routes import Route
from handlers.context import Commit, reserve_unlimited
from handlers.operations import Operation, StreamForm
from middleware.request_keys import CALLER, PAYLOAD, REASON
from runtime.error_response import ErrorForm, error_body
from runtime.errors import InternalError, ServiceError
from runtime.json_answer import encoded
from runtime.request_headers import credentials_hash
from runtime.settings import Settings
from runtime.telemetry.request_scope import request_scope
from runtime.types import Caller
from views.app_keys import CONTEXT
from views.event_stream import event_stream
from views.idempotency import REPLAYED, IdempotentRequests
from views.paced_body import paced

_JSON = "application/json; charset=utf-8"
_PROMPTS = ("prompt", "messages", "input", "query", "queries", "text_1")  # fields that hold a prompt

_log = logging.getLogger("warmstart.app")


async def reserve(max_tokens: int) -> Commit:
    """Reserve tokens of the request's rate limit, if it has one (``Context.reserve``).

    Args:
        max_tokens: the largest number of tokens that the request may use.

    Returns:
        The function that commits the number of tokens used.
    """
    return await (request_scope.get().reserve or reserve_unlimited)(max_tokens)


_Once = Callable[[Callable[[], Awaitable[Mapping[str, Any]]]], Awaitable[tuple[Mapping[str, Any], bool]]]
"""Does work, or returns the stored result of the same request, and whether it was stored."""


Allows = Callable[[Caller, str], bool]
"""Returns whether a caller may call an operation."""


def operation_handler(
    operation: Operation, route: Route, settings: Settings, idempotent: IdempotentRequests, allows: Allows
) -> Handler:
    """Return an aiohttp handler that calls an operation.

    Args:
        operation: the operation.
        route: the route, which says how the payload is built.
        settings: the application's settings.
        idempotent: does the work of requests with the same idempotency key once.
        allows: returns whether a caller may call an operation.
    """

    async def adapter(request: web.Request) -> web.StreamResponse:
        begin(request, allows)
        payload = await _payload(request, route, settings.max_json_depth)
        if "cache_control" in operation.request.model_fields and payload.get("cache_control") is None:
            payload |= _cache_control(request)
        if settings.log_prompts:
            log_prompt(payload)
        request[PAYLOAD] = payload
        ctx = request.app[CONTEXT]
        key = idempotent.key_of(request) if operation.generates else None
        once: _Once | None = None
        if key is not None:
            once = partial(idempotent.run, key, request_scope.get().caller, route.operation, payload)
        if operation.stream is not None and operation.streams(payload):
            events = operation.stream(payload, ctx)
            return await _send_events(request, events, route.errors, operation.stream_form, once)
        answer: Mapping[str, Any]
        if once is None:
            answer, repeated = await operation.handle(payload, ctx), False
        else:
            answer, repeated = await once(lambda: operation.handle(payload, ctx))
        return await json_answer(answer, REPLAYED if repeated else {})

    return adapter


def log_prompt(payload: Mapping[str, Any]) -> None:
    """Log the first of a request's fields that hold a prompt, if it has one."""
    if prompts := [payload[name] for name in _PROMPTS if name in payload]:
        _log.info("prompt", extra={"prompt": next((prompt for prompt in prompts if prompt is not None), None)})


def begin(request: web.Request, allows: Allows) -> None:
    """Tell the operations who calls them in this request.

    Args:
        request: the request.
        allows: returns whether a caller may call an operation.
    """
    caller: Caller | None = request.get(CALLER)
    may_call = None if caller is None else partial(allows, caller)
    request_scope.set(replace(request_scope.get(), caller=caller_of(request), may_call=may_call))


async def json_answer(answer: Mapping[str, Any], headers: Mapping[str, str] = MappingProxyType({})) -> web.Response:
    """Return the response with an operation's answer, and with the headers of the response cache.

    Args:
        answer: the answer.
        headers: further headers.
    """
    all_headers = {"Content-Type": _JSON, **_cache_headers(), **headers}
    return web.Response(body=paced(await encoded(answer)), headers=all_headers)


def caller_of(request: web.Request) -> str:
    """Return an id of the caller: the key's id, or a hash of the credentials sent if none is required, or ""."""
    caller: Caller | None = request.get(CALLER)
    if caller is not None:
        return caller.id
    headers = request.headers
    return credentials_hash(headers.getall("Authorization", []), headers.getall("X-API-Key", []))


def _cache_control(request: web.Request) -> dict[str, str]:
    lines = request.headers.getall("Cache-Control", [])
    return {"cache_control": ", ".join(lines).encode("ascii", "ignore").decode()} if lines else {}


def _cache_headers() -> dict[str, str]:
    usage = request_scope.get().usage
    return cache_headers(None if usage is None or usage.total is None else usage.total.cache)


async def _payload(request: web.Request, route: Route, max_depth: int) -> dict[str, Any]:
    path_fields = {field: request.match_info[field] for field in route.fields}
    if route.method in ("GET", "DELETE"):
        return query_payload(route, path_fields, {name: request.query.getall(name) for name in request.query})
    body = await request.read() if request.body_exists else None
    return body_payload(path_fields, body, request.content_type, request.charset, max_depth)


async def _send_events(
    request: web.Request,
    events: AsyncGenerator[dict[str, Any], None],
    errors: ErrorForm,
    form: StreamForm,
    once: _Once | None,
) -> web.StreamResponse:
    """Send the events. An error before the first one is raised, a later one is sent as the last event.

    Args:
        request: the request.
        events: the operation's chunks.
        errors: the form of errors on the request's route.
        form: the form of the stream.
        once: returns the stored events instead, if there are any; None without an idempotency key.
    """
    replayed = dict[str, str]()
    async with (
        aclosing(events),
        event_stream(request, lambda: _cache_headers() | replayed, form) as stream,
    ):

        async def send_all() -> dict[str, Any]:
            sent = []
            async for event in events:
                await stream.send(event)
                if once is not None:
                    sent.append(event)
            return {"events": sent}

        try:
            if once is None:
                await send_all()
            else:
                result, repeated = await once(send_all)
                if repeated:
                    replayed |= REPLAYED
                    for event in result["events"]:
                        await stream.send(event)
            if form == "data":
                await stream.write(b"data: [DONE]\n\n")
        except ServiceError as error:
            if not stream.begun:
                raise
            request[REASON] = error.code
            await stream.send(error_event(error, errors, form, stream.events))
        except ConnectionError:
            raise
        except Exception:
            if not stream.begun:
                raise
            _log.exception("a stream failed")
            request[REASON] = InternalError.code
            failure = InternalError("the stream failed")
            await stream.send(error_event(failure, errors, form, stream.events))
        return await stream.begun_response()


def error_event(error: ServiceError, errors: ErrorForm, form: StreamForm, sent: int) -> dict[str, Any]:
    """Return the event that ends a failed stream: OpenAI's error object on routes without a client's form, too.

    Args:
        error: the error.
        errors: the form of errors on the route.
        form: the form of the stream.
        sent: the number of events before it.
    """
    if errors in ("anthropic", "ollama"):
        return error_body(error, errors)
    if form == "data":
        return error.openai()
    members = {"code": error.code, "message": error.message, "param": error.param}
    return {"type": "error", "sequence_number": sent} | members
