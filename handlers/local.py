"""Builds the context on real models, and calls operations in this process.

The calls use a context that the process shares. It is built on first use and kept, so that a function container that is
frozen and thawed keeps its model.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from handlers.context import Clock, Context, RequestLimits
from handlers.dispatch.batches import open_files
from handlers.dispatch.lookup import find
from runtime.batches.batches import BatchStore
from runtime.engine.core_share import CoreShare
from runtime.errors import InvalidRequest, SettingsError
from runtime.events.idempotency.factory import open_records
from runtime.events.idempotency.records import Records
from runtime.events.outcome import Policy
from runtime.events.processor import Dispatch, Processor
from runtime.loading.adapters import with_adapters
from runtime.model.catalogue import ModelSpec, served_models
from runtime.model.progress import Progress
from runtime.model_pool.registry import Registry
from runtime.response_cache.cache import ResponseCache
from runtime.response_cache.factory import open_store
from runtime.response_cache.memory import MemoryStore
from runtime.settings import PRIVATE_NETWORKS, Settings
from runtime.status import Memory
from runtime.telemetry.metrics import Metrics
from runtime.telemetry.tracing import start_tracing

if TYPE_CHECKING:  # both take tenths of a second to import
    from runtime.engine.encoder_engine import EncoderEngine
    from runtime.engine.engine import FastEngine
    from runtime.engine.reference import ReferenceEngine
    from runtime.loading.memory_plan import MemoryPlan

_lock = threading.Lock()
_shared: Context | None = None


def build_context(settings: Settings, metrics: Metrics | None = None) -> Context:
    """Build a context on real models. Loads no model and imports no torch.

    Args:
        settings: the validated settings.
        metrics: the metrics that the models update; new ones if left out.

    Raises:
        ModelUnavailable: ``MODEL_NAME`` or one of ``MODELS`` is not a valid model name.
        SettingsError: ``MODELS``, ``MODEL_ALIASES``, ``PINNED_MODELS`` or ``ADAPTERS_DIR`` is wrong, or ``TRACING`` is
            on and OpenTelemetry is not installed or misconfigured.
    """
    metrics = metrics or Metrics()
    specs = with_adapters(
        served_models(settings.model_name, settings.models, settings.adapters_dir), settings.adapters_dir
    )

    @cache
    def plan() -> MemoryPlan:
        from runtime.loading.memory_plan import MemoryPlan  # not before a load

        return MemoryPlan(specs, settings)

    share = CoreShare()

    def load(spec: ModelSpec, progress: Progress) -> FastEngine | EncoderEngine | ReferenceEngine:
        from runtime.loading.load_engine import load_engine

        model = metrics.model(spec.id)
        engine = load_engine(spec, settings, progress, model, plan=plan(), share=share)
        model.ready(engine.info.load_seconds + engine.info.warmup_seconds)
        return engine

    models = Registry(
        specs,
        load,
        measure=lambda spec, progress: plan().need(spec, progress),
        budget=lambda: plan().budget,
        pinned=settings.pinned_models,
        wait_seconds=settings.model_wait_seconds,
        idle_seconds=settings.idle_unload_seconds,
        aliases=settings.model_aliases,
    )

    @cache
    def limit() -> int:
        from runtime.host import memory_limit

        return memory_limit()

    def memory() -> Memory:
        from runtime.host import resident_memory

        return Memory(resident_memory(), limit(), models.budget_bytes)

    database, files = open_files(settings) or (None, None)
    return Context(
        models=models,
        clock=Clock(time.time, time.monotonic),
        new_id=lambda: secrets.token_hex(12),
        limits=RequestLimits(settings.max_prompt_chars, settings.max_sequences),
        reasoning=settings.reasoning == "on",
        version=service_version(),
        started=time.monotonic(),
        cache=_response_cache(settings),
        responses=MemoryStore(settings.responses_store_bytes, settings.responses_store_ttl_seconds, time.time)
        if settings.responses_store_bytes
        else None,
        files=files,
        batches=None if database is None or files is None else BatchStore(database, files),
        model_stats=metrics.model_stats,
        memory=memory,
        tracing=start_tracing(service_version()) if settings.tracing else None,
    )


def _response_cache(settings: Settings) -> ResponseCache | None:
    if settings.response_cache == "off":
        return None
    return ResponseCache(
        open_store(settings, time.time),
        limit_bytes=settings.response_cache_bytes,
        ttl_seconds=settings.response_cache_ttl_seconds,
        per_caller=settings.response_cache_per_key,
        clock=time.time,
        monotonic=time.monotonic,
    )


def service_version() -> str:
    """Return the version of the installed package, "0" if it is not installed."""
    try:
        return version("warmstart")
    except PackageNotFoundError:  # run from a checkout
        return "0"


def open_processor(settings: Settings, dispatch: Dispatch) -> tuple[Processor, Records | None]:
    """Build the processor of events and its idempotency records.

    Returns:
        The processor, and the records, which the caller must close; None if idempotency is off.

    Raises:
        SettingsError: ``REDIS_URL`` is wrong.
    """
    records = open_records(settings)
    processor = Processor(
        dispatch,
        records,
        Policy(max_deliveries=settings.events_max_deliveries),
        lease_seconds=settings.events_ack_seconds,
        result_seconds=settings.idempotency_ttl_seconds,
    )
    return processor, records


def reject_http_settings(settings: Settings, advice: str) -> None:
    """Reject settings of the HTTP middlewares in a process without them, so that no protection is silently missing.

    Args:
        settings: the settings of a cloud function.
        advice: what to do instead, at the end of the error message.

    Raises:
        SettingsError: one of them is set; the message names the first.
    """
    http_settings = {
        "API_KEYS": settings.needs_credentials,
        "RATE_LIMIT_ENABLED": settings.rate_limit_enabled,
        "ALLOWED_IPS": settings.allowed_ips != PRIVATE_NETWORKS,
        "AUDIT_LOG": settings.audit_log is not None,
        "FILES_DIR": settings.files_dir is not None,  # nothing would run the batches
    }
    for name, configured in http_settings.items():
        if configured:
            raise SettingsError(f"{name}: a cloud function does not run the HTTP middlewares; {advice}")


def shared_context() -> Context:
    """Return the process-wide context, which is built from the environment on first use.

    Raises:
        SettingsError: a setting is wrong.
    """
    global _shared
    with _lock:
        if _shared is None:
            _shared = build_context(Settings.load())
        return _shared


async def invoke(operation: str, payload: dict[str, Any], *, ctx: Context | None = None) -> dict[str, Any]:
    """Call an operation by name.

    Args:
        operation: a name in ``handlers.operations.OPERATIONS``.
        payload: the operation's fields; ``stream`` has no effect, see ``invoke_stream``.
        ctx: the context; None for the shared one.

    Returns:
        The whole response.

    Raises:
        NotFound: there is no such operation.
        ServiceError: the operation's own errors.
    """
    ctx = ctx or shared_context()
    return await find(operation, ctx).handle(payload, ctx)


def invoke_sync(operation: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Call an operation by name from code without an event loop, as ``invoke`` does.

    Raises:
        RuntimeError: called on a thread with a running event loop, which the call would block.
    """
    call = invoke(operation, payload)
    try:
        return asyncio.run(call)
    finally:
        call.close()  # in a running loop it was never awaited


async def invoke_stream(
    operation: str, payload: dict[str, Any], *, ctx: Context | None = None
) -> AsyncGenerator[dict[str, Any], None]:
    """Call a streaming operation by name and yield its chunks; arguments and errors as in ``invoke``.

    Raises:
        InvalidRequest: the operation does not stream.
    """
    ctx = ctx or shared_context()
    stream = find(operation, ctx).stream
    if stream is None:
        raise InvalidRequest(f"{operation} does not stream", param="stream")
    async with aclosing(stream(payload, ctx)) as events:
        async for event in events:
            yield event
