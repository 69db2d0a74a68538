"""The composition root: settings in, an aiohttp application out. The only place where handlers meet HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import aiohttp_cors
from aiohttp import web
from aiohttp.typedefs import Handler

import middleware
from handlers.api.openapi import build
from handlers.api.payload import body_payload, cache_headers, query_payload
from handlers.api.routes import ROUTES, Route, speaks_openai
from handlers.context import Context, Settle, free
from handlers.dispatch.events import Dispatcher
from handlers.dispatch.lookup import find
from handlers.local import build_context, open_processor
from handlers.operations import OPERATIONS, SCOPES, Operation
from handlers.operations.health import default_state
from middleware.access import Access
from middleware.request_keys import CALLER, PAYLOAD, REASON, SPEAKS_OPENAI
from runtime.errors import InternalError, ServiceError
from runtime.events.delivery_report import DeliveryReporter
from runtime.json_answer import encoded
from runtime.model_pool.registry import Registry
from runtime.response_cache.cache import ResponseCache
from runtime.settings import Settings
from runtime.telemetry.exposition import ServiceStats, service_families
from runtime.telemetry.metrics import Metrics
from runtime.telemetry.request_scope import note_usage, request_caller, request_charge, request_usage
from runtime.types import CacheStats, Caller
from views import pages
from views.events import Events

_log = logging.getLogger("warmstart.app")

_PRELOAD_SECONDS = 0.03
_JSON = "application/json; charset=utf-8"
_EXPOSED = ("X-Request-Id", "Retry-After", "RateLimit", "RateLimit-Policy", "X-Cache", "X-Cache-Key", "Age")  # to pages

CONTEXT: web.AppKey[Context] = web.AppKey("context", Context)
METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)
SETTINGS: web.AppKey[Settings] = web.AppKey("settings", Settings)
STATE = web.AppKey[Callable[[], str]]("state")
"""What ``/readyz`` says; all is well if that is ``ready``."""


def create_app(
    settings: Settings, ctx: Context | None = None, metrics: Metrics | None = None, *, whole: bool = True
) -> web.Application:
    """Wire everything together. Nothing is loaded until the application starts.

    Args:
        settings: validated settings.
        ctx: another context than the real one (tests).
        metrics: those that the context's models feed; new ones if left out.
        whole: all operations and pages; else probes, health and metrics only, for a process that works on other things.

    Raises:
        ModelUnavailable: ``MODEL_NAME`` is not a name of any kind.
        SettingsError: the keys' records are wrong, or EVENTS_OPERATIONS is.
    """
    metrics = metrics or Metrics()
    ctx = replace(
        ctx or build_context(settings, metrics), observe=note_usage, caller=request_caller.get, charge=_charge
    )
    app = web.Application(client_max_size=settings.max_body_bytes)
    app[CONTEXT] = ctx
    app[METRICS] = metrics
    app[SETTINGS] = settings
    app[STATE] = lambda: default_state(ctx.models)
    admin = frozenset(name for name, operation in OPERATIONS.items() if operation.admin)
    access = Access(admin=admin, scopes=SCOPES)
    app[SPEAKS_OPENAI] = speaks_openai
    middleware.install(app, settings, access, metrics)
    for route in ROUTES if whole else [route for route in ROUTES if route.operation == "health"]:
        handler = _adapter(find(route.operation, ctx), route, settings)
        access.operations[handler] = route.operation
        if route.operation == "health":
            access.open.add(handler)
        if route.method == "GET":
            app.router.add_get(route.path, handler)  # answers HEAD too
        else:
            app.router.add_route(route.method, route.path, handler)
    if whole:
        dispatch = Dispatcher(ctx, settings.events_operations)
        reporter = DeliveryReporter("http", OPERATIONS, metrics.events)
        events = Events(settings, partial(open_processor, settings, dispatch), reporter, _caller)
        app.router.add_post("/events", events.handle)
        access.operations[events.handle] = "events"
        app.on_cleanup.append(events.close)
    app.router.add_get("/livez", _livez)
    app.router.add_get("/readyz", _readyz)
    access.open |= {_livez, _readyz}
    app.router.add_get("/metrics", _metrics)
    access.operations[_metrics] = "metrics"
    if whole:
        page_handlers = pages.add_routes(app, lambda: build(ROUTES, ctx.version))
        if settings.open_pages:
            access.open |= page_handlers
    _allow_origins(app, settings)
    # Ended in reverse: what the last requests leave is kept, and their spans are sent.
    app.cleanup_ctx.extend([_tracing, _response_cache, _models])
    return app


async def _charge(most: int) -> Settle:
    return await (request_charge.get() or free)(most)


def _adapter(operation: Operation, route: Route, settings: Settings) -> Handler:
    """An aiohttp handler that calls an operation."""

    async def adapter(request: web.Request) -> web.StreamResponse:
        request_caller.set(_caller(request))
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


def _caller(request: web.Request) -> str:
    """Tells callers apart: by the key, or where none is asked for by the credentials sent; "" without any."""
    caller: Caller | None = request.get(CALLER)
    if caller is not None:
        return caller.id
    sent = [request.headers.getall(name, []) for name in ("Authorization", "X-API-Key")]
    return sha256(repr(sent).encode("utf-8", "surrogateescape")).hexdigest() if any(sent) else ""


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
    """Server-sent events (HTML Living Standard section 9.2), the way OpenAI uses them: data lines, ``[DONE]`` last."""
    async with aclosing(events):
        # Whatever can be wrong is known by the first event, while a plain error can still be answered.
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


async def _livez(request: web.Request) -> web.Response:
    alive = request.app[CONTEXT].models.alive
    return web.json_response({"status": "alive" if alive else "dead"}, status=200 if alive else 503)


async def _readyz(request: web.Request) -> web.Response:
    state = request.app[STATE]()
    return web.json_response({"status": state}, status=200 if state == "ready" else 503)


async def _metrics(request: web.Request) -> web.Response:
    ctx = request.app[CONTEXT]
    cache = CacheStats() if ctx.cache is None else await ctx.cache.stats()
    service = ServiceStats(ctx.models.status(), ctx.models.ready, ctx.memory(), cache)
    accept = ",".join(request.headers.getall("Accept", []))
    body, content_type = request.app[METRICS].render(accept, service_families(service))
    return web.Response(body=body, headers={"Content-Type": content_type})


def _allow_origins(app: web.Application, settings: Settings) -> None:
    """CORS on the operations for the configured origins; the docs need none, and probes are for no page."""
    if not settings.cors_origins:
        return
    options = aiohttp_cors.ResourceOptions(allow_headers="*", expose_headers=_EXPOSED, max_age=600)
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(settings.cors_origins, options))
    paths = {route.plain_path for route in ROUTES}
    for route in list(app.router.routes()):
        if route.resource is not None and route.resource.canonical in paths and route.method != "HEAD":
            cors.add(route)


async def _tracing(app: web.Application) -> AsyncIterator[None]:
    """Send the last spans at the end."""
    yield
    if (tracing := app[CONTEXT].tracing) is not None:
        await asyncio.to_thread(tracing.close)


async def _models(app: web.Application) -> AsyncIterator[None]:
    """Start loading at start if asked to; free everything at the end."""
    models = app[CONTEXT].models
    if not isinstance(models, Registry):
        yield
        return

    def preload() -> None:
        if app[SETTINGS].preload and not models.draining:
            models.preload()

    # A moment later, when the service listens: the load's imports would hold that up.
    timer = asyncio.get_running_loop().call_later(_PRELOAD_SECONDS, preload)
    yield
    timer.cancel()
    await asyncio.to_thread(models.close)


async def _response_cache(app: web.Application) -> AsyncIterator[None]:
    """Let go of the kept answers' store at the end."""
    yield
    if isinstance(cache := app[CONTEXT].cache, ResponseCache):
        await asyncio.to_thread(cache.close)
