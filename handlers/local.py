"""The way in for everything but HTTP: the real context, and calls on one that the whole process shares.

The shared context is built on first use and kept, so that a function container that is frozen and thawed keeps its
model.
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
from typing import Any

from handlers.context import Clock, Context, RequestLimits
from handlers.dispatch.lookup import find
from runtime.errors import InvalidRequest, SettingsError
from runtime.events.idempotency.factory import open_records
from runtime.events.idempotency.records import Records
from runtime.events.outcome import Policy
from runtime.events.processor import Dispatch, Processor
from runtime.loading.adapters import with_adapters
from runtime.model.catalogue import served_models
from runtime.model_pool.registry import Registry
from runtime.response_cache.cache import ResponseCache
from runtime.response_cache.factory import open_store
from runtime.settings import PRIVATE_NETWORKS, Settings
from runtime.telemetry.metrics import Metrics
from runtime.telemetry.tracing import start_tracing
from runtime.types import Memory

_lock = threading.Lock()
_shared: Context | None = None


def build_context(settings: Settings, metrics: Metrics | None = None) -> Context:
    """A context on real models. Loads nothing and imports no torch.

    Args:
        settings: validated settings.
        metrics: what the models feed; new ones if left out.

    Raises:
        ModelUnavailable: ``MODEL_NAME`` or one of ``MODELS`` is not a name of any kind.
        SettingsError: ``MODELS``, ``PINNED_MODELS`` or ``ADAPTERS_DIR`` is wrong, or there is nothing to trace with.
    """
    metrics = metrics or Metrics()
    specs = with_adapters(
        served_models(settings.model_name, settings.models, settings.adapters_dir), settings.adapters_dir
    )

    @cache
    def plan() -> Any:
        from runtime.loading.memory_plan import MemoryPlan  # tenths of a second that nobody pays before a load

        return MemoryPlan(specs, settings)

    def load(spec: Any, progress: Any) -> Any:
        from runtime.loading.load_engine import load_engine

        model = metrics.model(spec.id)
        engine = load_engine(spec, settings, progress, model, plan=plan())
        model.ready(engine.info.load_seconds + engine.info.warmup_seconds)
        return engine

    models: Registry[Any] = Registry(
        specs,
        load,
        measure=lambda spec, progress: plan().need(spec, progress),
        budget=lambda: plan().budget,
        pinned=settings.pinned_models,
        wait_seconds=settings.model_wait_seconds,
        idle_seconds=settings.idle_unload_seconds,
    )

    @cache
    def limit() -> int:
        from runtime.host import memory_limit

        return memory_limit()

    def memory() -> Memory:
        from runtime.host import resident_memory

        return Memory(resident_memory(), limit(), models.budget_bytes)

    return Context(
        models=models,
        clock=Clock(time.time, time.monotonic),
        new_id=lambda: secrets.token_hex(12),
        limits=RequestLimits(settings.max_prompt_chars, settings.max_sequences),
        version=service_version(),
        started=time.monotonic(),
        cache=_response_cache(settings),
        figures=metrics.figures,
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
    """The installed version, from the metadata in ``setup.cfg``."""
    try:
        return version("warmstart")
    except PackageNotFoundError:  # run from a plain checkout
        return "0"


def open_processor(settings: Settings, dispatch: Dispatch) -> tuple[Processor, Records | None]:
    """What works on events, and the records that it keeps, to be closed in the end.

    Raises:
        SettingsError: see ``open_records``.
    """
    records = open_records(settings)
    processor = Processor(
        dispatch,
        records,
        Policy(most=settings.events_max_deliveries),
        lease_seconds=settings.events_ack_seconds,
        keep_seconds=settings.idempotency_ttl_seconds,
    )
    return processor, records


def refuse_edge(settings: Settings, instead: str) -> None:
    """Refuse settings of the HTTP service's edge where there is none: nobody is to believe in a lock that is not there.

    Args:
        settings: of a process that is called otherwise.
        instead: what to do.

    Raises:
        SettingsError: names the first of them.
    """
    edge = {
        "API_KEYS": settings.needs_credentials,
        "RATE_LIMIT_ENABLED": settings.rate_limit_enabled,
        "ALLOWED_IPS": settings.allowed_ips != PRIVATE_NETWORKS,
        "AUDIT_LOG": settings.audit_log is not None,
    }
    for name, asked in edge.items():
        if asked:
            raise SettingsError(f"{name}: a function has no edge of its own; {instead}")


def shared_context() -> Context:
    """The process-wide context, built from the environment on first use.

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
        operation: a name in ``handlers.OPERATIONS``.
        payload: its fields; ``stream`` is of no effect here, see ``invoke_stream``.
        ctx: another context than the shared one.

    Raises:
        ServiceError: as the operation does; ``NotFound`` if there is none of that name.
    """
    ctx = ctx or shared_context()
    return await find(operation, ctx).handle(payload, ctx)


def invoke_sync(operation: str, payload: dict[str, Any]) -> dict[str, Any]:
    """``invoke`` for code without an event loop.

    Raises:
        RuntimeError: called from inside a running event loop, which it would block.
    """
    call = invoke(operation, payload)
    try:
        return asyncio.run(call)
    finally:
        call.close()  # if there is a loop, it was never awaited


async def invoke_stream(
    operation: str, payload: dict[str, Any], *, ctx: Context | None = None
) -> AsyncGenerator[dict[str, Any], None]:
    """Call a streaming operation by name and take its answer piece by piece.

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
