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
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from handlers import OPERATIONS, Operation
from handlers.context import Clock, Context, Limits
from runtime.catalogue import parse_model_name
from runtime.errors import InvalidRequest, NotFound
from runtime.metrics import Metrics
from runtime.registry import Registry
from runtime.settings import Settings

_lock = threading.Lock()
_shared: Context | None = None


def build_context(settings: Settings, metrics: Metrics | None = None) -> Context:
    """A context on real models. Loads nothing and imports no torch.

    Args:
        settings: validated settings.
        metrics: what the models feed; new ones if left out.

    Raises:
        ModelUnavailable: ``MODEL_NAME`` is not a name of any kind.
    """
    metrics = metrics or Metrics()

    def load(spec: Any, progress: Any) -> Any:
        from runtime.load_engine import load_engine  # tenths of a second that nobody pays before a load

        model = metrics.model(spec.id)
        engine = load_engine(spec, settings, progress, model)
        model.ready(engine.info.load_seconds + engine.info.warmup_seconds)
        return engine

    return Context(
        models=Registry([parse_model_name(settings.model_name)], load, wait_seconds=settings.model_wait_seconds),
        clock=Clock(time.time, time.monotonic),
        new_id=lambda: secrets.token_hex(12),
        limits=Limits(settings.max_prompt_chars, settings.max_sequences),
        version=service_version(),
        started=time.monotonic(),
    )


def service_version() -> str:
    """The installed version, from the metadata in ``setup.cfg``."""
    try:
        return version("warmstart")
    except PackageNotFoundError:  # run from a plain checkout
        return "0"


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
    return await _operation(operation).handle(payload, ctx or shared_context())


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
    stream = _operation(operation).stream
    if stream is None:
        raise InvalidRequest(f"{operation} does not stream", param="stream")
    async with aclosing(stream(payload, ctx or shared_context())) as events:
        async for event in events:
            yield event


def _operation(name: str) -> Operation:
    if name not in OPERATIONS:
        raise NotFound(f"no operation {name!r}; there are {', '.join(OPERATIONS)}")
    return OPERATIONS[name]
