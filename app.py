"""The composition root: builds the aiohttp application, and the queue worker, from the settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial

import aiohttp_cors
from aiohttp import web

import middleware
from handlers.api.openapi import build
from handlers.api.routes import ROUTES, error_form
from handlers.context import Context
from handlers.dispatch.batches import runner_of
from handlers.dispatch.consumer import consumer_of
from handlers.dispatch.events import Dispatcher
from handlers.dispatch.lookup import find
from handlers.local import build_context, open_processor
from handlers.operations import OPERATIONS, SCOPES
from handlers.operations.health import default_state
from middleware.access import Access
from middleware.request_keys import AUDIT, ERROR_FORM
from runtime.batches.audit import RowAudit
from runtime.events.audit import EventAudit
from runtime.events.consumer import Consumer
from runtime.events.delivery_report import DeliveryReporter
from runtime.events.idempotency.factory import open_records
from runtime.events.idempotency.records import Records
from runtime.events.queues.base import QueueOptions
from runtime.events.queues.factory import open_source
from runtime.model_pool.registry import Registry
from runtime.response_cache.cache import ResponseCache
from runtime.settings import Settings
from runtime.telemetry.metrics import Metrics
from runtime.telemetry.request_scope import current_caller, has_token_limit, may_call, observe_usage
from views import pages
from views.app_keys import BATCHES, CONTEXT, METRICS, SETTINGS, STATE
from views.events import Events
from views.idempotency import REPLAYED, IdempotentRequests
from views.operations import caller_of, operation_handler, reserve
from views.probes import exposition, livez, load, readyz, version
from views.stored_files import file_handler, form_handler

_PRELOAD_SECONDS = 0.03
# Response headers that pages of other origins may read (CORS).
_EXPOSED = ("X-Request-Id", "Retry-After", "RateLimit", "RateLimit-Policy", "X-Cache", "X-Cache-Key", "Age", *REPLAYED)


def create_app(
    settings: Settings, ctx: Context | None = None, metrics: Metrics | None = None, *, full_api: bool = True
) -> web.Application:
    """Build the application. No model is loaded until it starts.

    Args:
        settings: validated settings.
        ctx: a context that replaces the real one, for tests.
        metrics: the metrics that the context's models update; new ones if left out.
        full_api: serve all operations and pages; otherwise only probes, health and metrics, for a process with another
            main task.

    Raises:
        ModelUnavailable: ``MODEL_NAME`` is not a valid model name.
        SettingsError: the API key records, ``REDIS_URL`` or EVENTS_OPERATIONS are invalid.
    """
    metrics = metrics or Metrics()
    ctx = replace(
        ctx or build_context(settings, metrics),
        observe=observe_usage,
        caller=current_caller,
        may_call=may_call,
        reserve=reserve,
        has_token_limit=has_token_limit,
    )
    app = web.Application(client_max_size=settings.max_body_bytes)
    app[CONTEXT] = ctx
    app[METRICS] = metrics
    app[SETTINGS] = settings
    app[STATE] = lambda: default_state(ctx.models)
    admin = frozenset(name for name, operation in OPERATIONS.items() if operation.admin)
    included = {name: operation.part_of for name, operation in OPERATIONS.items() if operation.part_of is not None}
    access = Access(admin=admin, scopes=SCOPES, included=included)
    app[ERROR_FORM] = error_form
    middleware.install(app, settings, access, metrics)
    idempotent = IdempotentRequests(settings, open_records)
    app.on_cleanup.append(idempotent.close)
    for route in ROUTES if full_api else [route for route in ROUTES if route.operation == "health"]:
        operation = find(route.operation, ctx)
        handler = operation_handler(operation, route, settings, idempotent, access.allows)
        if operation.form:
            handler = form_handler(operation, handler, settings, access.allows)
            access.forms.add(handler)
        elif operation.raw:
            handler = file_handler(route, access.allows)
        access.operations[handler] = route.operation
        if route.operation == "health":
            access.open.add(handler)
        if route.method == "GET":
            app.router.add_get(route.path, handler)  # answers HEAD too
        else:
            app.router.add_route(route.method, route.path, handler)
    if full_api:
        dispatch = Dispatcher(ctx, settings.events_operations)
        reporter = DeliveryReporter("http", OPERATIONS, metrics.events)
        events = Events(settings, partial(open_processor, settings, dispatch), reporter, caller_of)
        app.router.add_post("/events", events.handle)
        access.operations[events.handle] = "events"
        app.on_cleanup.append(events.close)
        audit = RowAudit(*app[AUDIT], required=settings.audit_required) if AUDIT in app else None
        app[BATCHES] = runner_of(settings, ctx, metrics.batches, error_form, audit)
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/ping", readyz)
    access.open |= {livez, readyz}
    app.router.add_get("/version", version)
    app.router.add_get("/load", load)
    app.router.add_get("/metrics", exposition)
    access.operations |= dict.fromkeys((version, load, exposition), "metrics")
    if full_api:
        page_handlers = pages.add_routes(app, lambda: build(ROUTES, ctx.version))
        if settings.open_pages:
            access.open |= page_handlers
    _allow_origins(app, settings)
    # Cleaned up in reverse order: the cache can still store the last responses, and the last spans are sent at the end.
    app.cleanup_ctx.extend([_tracing, _response_cache, _batches, _models])
    return app


@dataclass(frozen=True, slots=True)
class EventWorker:
    """A queue consumer and the HTTP application that runs beside it.

    Args:
        app: the application, which serves probes and metrics, or the whole API.
        consumer: the consumer, not yet running.
        records: the idempotency records of handled events, to be closed at the end; None if there are none.
    """

    app: web.Application
    consumer: Consumer
    records: Records | None


def create_worker(settings: Settings, queue: QueueOptions, *, full_api: bool) -> EventWorker:
    """Build a queue worker. Nothing is loaded or connected until it runs.

    Args:
        settings: validated settings.
        queue: the queue to consume.
        full_api: serve the whole API beside it; otherwise probes, health and metrics.

    Raises:
        ModelUnavailable: ``MODEL_NAME`` is not a valid model name.
        SettingsError: as for ``create_app``; or the broker's URL is invalid or its library is not installed.
    """
    source = open_source(queue)
    app = create_app(settings, full_api=full_api)
    ctx = app[CONTEXT]
    processor, records = open_processor(settings, Dispatcher(ctx, settings.events_operations))
    audit = EventAudit(*app[AUDIT], required=settings.audit_required) if AUDIT in app else None
    reporter = DeliveryReporter(source.name, OPERATIONS, app[METRICS].events, audit)
    consumer = consumer_of(settings, source, ctx, processor, reporter)
    model_state = app[STATE]

    def state() -> str:
        current = model_state()
        # With the full API, an unavailable broker must not make this replica unready for interactive requests.
        return current if current != "ready" or (full_api and consumer.state == "connecting") else consumer.state

    app[STATE] = state
    return EventWorker(app, consumer, records)


def _allow_origins(app: web.Application, settings: Settings) -> None:
    """Enable CORS for the configured origins on the operations' routes; the docs and probes need none."""
    if not settings.cors_origins:
        return
    options = aiohttp_cors.ResourceOptions(allow_headers="*", expose_headers=_EXPOSED, max_age=600)
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(settings.cors_origins, options))
    paths = {route.plain_path for route in ROUTES}
    for route in list(app.router.routes()):
        if route.resource is not None and route.resource.canonical in paths and route.method != "HEAD":
            cors.add(route)


async def _tracing(app: web.Application) -> AsyncIterator[None]:
    """Cleanup context: send the last spans at shutdown."""
    yield
    if (tracing := app[CONTEXT].tracing) is not None:
        await asyncio.to_thread(tracing.close)


async def _models(app: web.Application) -> AsyncIterator[None]:
    """Cleanup context: preload the model after startup if PRELOAD is set, and unload all models at shutdown."""
    models = app[CONTEXT].models
    if not isinstance(models, Registry):
        yield
        return

    def preload() -> None:
        if app[SETTINGS].preload and not models.draining:
            models.preload()

    # Delayed until the service listens, because the imports of the load would hold that up.
    timer = asyncio.get_running_loop().call_later(_PRELOAD_SECONDS, preload)
    yield
    timer.cancel()
    await asyncio.to_thread(models.close)


async def _batches(app: web.Application) -> AsyncIterator[None]:
    """Cleanup context: run batches, until the models have been unloaded at shutdown."""
    runner = app.get(BATCHES)
    if runner is not None:
        runner.start()
    yield
    if runner is not None:
        await runner.close()


async def _response_cache(app: web.Application) -> AsyncIterator[None]:
    """Cleanup context: close the response cache at shutdown."""
    yield
    if isinstance(cache := app[CONTEXT].cache, ResponseCache):
        await asyncio.to_thread(cache.close)
