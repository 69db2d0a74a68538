"""The composition root: settings in, an aiohttp application out. The only place where handlers meet HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import aiohttp_cors
from aiohttp import web
from aiohttp.typedefs import Handler

import middleware
import web as pages
from handlers import OPERATIONS, Operation
from handlers.context import Context
from handlers.health import default_state
from handlers.local import build_context
from handlers.openapi import Route, build
from runtime.errors import InternalError, InvalidRequest, ServiceError, UnsupportedMediaType
from runtime.logging import request_usage
from runtime.metrics import Metrics
from runtime.registry import Registry
from runtime.settings import Settings
from runtime.strict_json import loads

_log = logging.getLogger("warmstart.app")

ROUTES: tuple[Route, ...] = (
    Route("GET", "/health", "health"),
    Route("GET", "/model-info", "model_info"),
    Route("GET", "/models", "models"),
    Route("POST", "/generate", "generate"),
    Route("POST", "/complete", "complete"),
    Route("POST", "/chat/completions", "chat", openai=True),
    Route("GET", "/v1/models", "models", openai=True),
    Route("POST", "/v1/chat/completions", "chat", openai=True),
)

_PRELOAD_SECONDS = 0.03

CONTEXT: web.AppKey[Context] = web.AppKey("context", Context)
METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)
SETTINGS: web.AppKey[Settings] = web.AppKey("settings", Settings)


def create_app(settings: Settings, ctx: Context | None = None, metrics: Metrics | None = None) -> web.Application:
    """Wire everything together. Nothing is loaded until the application starts.

    Args:
        settings: validated settings.
        ctx: another context than the real one (tests).
        metrics: those that the context's models feed; new ones if left out.

    Raises:
        ModelUnavailable: ``MODEL_NAME`` is not a name of any kind.
    """
    metrics = metrics or Metrics()
    ctx = replace(ctx or build_context(settings, metrics), observe=_observe)
    app = web.Application(client_max_size=settings.max_body_bytes)
    app[CONTEXT] = ctx
    app[METRICS] = metrics
    app[SETTINGS] = settings
    middleware.install(app, settings)
    for route in ROUTES:
        add = app.router.add_get if route.method == "GET" else app.router.add_post  # add_get answers HEAD too
        add(route.path, _adapter(OPERATIONS[route.operation], route, settings))
    app.router.add_get("/livez", _livez)
    app.router.add_get("/readyz", _readyz)
    app.router.add_get("/metrics", _metrics)
    pages.add_routes(app, build(ROUTES, ctx.version))
    _allow_origins(app, settings)
    app.cleanup_ctx.append(_models)
    return app


def _observe(usage: Any) -> None:
    if (facts := request_usage.get()) is not None:
        facts.update(usage)


def _adapter(operation: Operation, route: Route, settings: Settings) -> Handler:
    """An aiohttp handler that calls an operation."""

    async def adapter(request: web.Request) -> web.StreamResponse:
        payload = _query(request) if route.method == "GET" else await _json_body(request)
        if settings.log_prompts and isinstance(payload, dict) and payload.keys() & {"prompt", "messages"}:
            _log.info("prompt", extra={"prompt": payload.get("prompt", payload.get("messages"))})
        ctx = request.app[CONTEXT]
        if operation.stream is not None and isinstance(payload, dict) and payload.get("stream") is True:
            return await _send_events(request, operation.stream(payload, ctx))
        return web.json_response(await operation.handle(payload, ctx))

    return adapter


def _query(request: web.Request) -> dict[str, Any]:
    """The query's fields; one given more than once is a list, which no field takes."""
    values = {name: request.query.getall(name) for name in request.query}
    return {name: found if len(found) > 1 else found[0] for name, found in values.items()}


async def _json_body(request: web.Request) -> Any:
    if request.content_type != "application/json":
        raise UnsupportedMediaType(f"send application/json, not {request.content_type[:100]!r}")
    if (request.charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("JSON is UTF-8 (RFC 8259 section 8.1)")
    payload = loads(await request.read())
    if not isinstance(payload, dict):
        raise InvalidRequest("the body must be a JSON object")
    return payload


async def _send_events(request: web.Request, events: AsyncGenerator[dict[str, Any], None]) -> web.StreamResponse:
    """Server-sent events (HTML Living Standard section 9.2), the way OpenAI uses them: data lines, ``[DONE]`` last."""
    async with aclosing(events):
        # Whatever can be wrong is known by the first event, while a plain error can still be answered.
        first = await anext(events, None)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        try:
            if first is not None:
                await _send(response, first)
            async for event in events:
                await _send(response, event)
            await response.write(b"data: [DONE]\n\n")
        except ServiceError as error:
            await _send(response, error.openai())
        except ConnectionError:
            raise
        except Exception:
            _log.exception("a stream failed")
            await _send(response, InternalError("the stream failed").openai())
        await response.write_eof()
        return response


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")


async def _livez(request: web.Request) -> web.Response:
    alive = request.app[CONTEXT].models.alive
    return web.json_response({"status": "alive" if alive else "dead"}, status=200 if alive else 503)


async def _readyz(request: web.Request) -> web.Response:
    state = default_state(request.app[CONTEXT].models)
    return web.json_response({"status": state}, status=200 if state == "ready" else 503)


async def _metrics(request: web.Request) -> web.Response:
    body, content_type = request.app[METRICS].render(",".join(request.headers.getall("Accept", [])))
    return web.Response(body=body, headers={"Content-Type": content_type})


def _allow_origins(app: web.Application, settings: Settings) -> None:
    """CORS on the operations for the configured origins; the docs need none, and probes are for no page."""
    if not settings.cors_origins:
        return
    options = aiohttp_cors.ResourceOptions(
        allow_headers="*", expose_headers=("X-Request-Id", "Retry-After"), max_age=600
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(settings.cors_origins, options))
    paths = {route.path for route in ROUTES}
    for route in list(app.router.routes()):
        if route.resource is not None and route.resource.canonical in paths and route.method != "HEAD":
            cors.add(route)


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
