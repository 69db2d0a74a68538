"""Operations on the served models: list, load, unload, and switch the default."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from handlers.context import Context
from handlers.schemas.base import Empty, ModelName
from handlers.schemas.parsing import parse
from handlers.schemas.requests import LoadRequest
from runtime.status import ModelStatus
from runtime.types import ModelInfo


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """List the served models, the default first, and then their aliases, see ``ModelsResponse``."""
    parse(Empty, payload)
    return {"object": "list", "data": [entry(status, ctx, name) for name, status in served_names(ctx)]}


async def get(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return one model's state, see ``ModelName`` and ``ModelEntry``.

    Raises:
        ModelNotFound: no model of that name is served.
    """
    name = parse(ModelName, payload).model
    return entry(ctx.models.find(name), ctx, name)


async def load(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Start loading a model and return its state at once, see ``LoadRequest`` and ``ModelEntry``.

    Raises:
        ServiceError: the model is unknown, or the service is shutting down.
    """
    return entry(ctx.models.load(parse(LoadRequest, payload).model), ctx)


async def load_stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """Start loading a model and yield its state at each change, until the load has ended.

    Raises:
        ServiceError: the same errors as ``load``.
    """
    name = parse(LoadRequest, payload).model
    ctx.models.load(name)
    async with aclosing(ctx.models.watch(name)) as states:
        async for status in states:
            yield entry(status, ctx)


async def unload(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Unload a model once its requests have ended, see ``ModelName`` and ``ModelEntry``.

    Raises:
        ServiceError: the model is unknown.
    """
    return entry(await ctx.models.unload(parse(ModelName, payload).model), ctx)


async def set_default(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Load a model and make it the default, see ``ModelName`` and ``ModelEntry``.

    Raises:
        ServiceError: the model is unknown, still loading, or unavailable; see ``Models.set_default``.
    """
    return entry(await ctx.models.set_default(parse(ModelName, payload).model), ctx)


def served_names(ctx: Context) -> list[tuple[str, ModelStatus]]:
    """Return the names of the served models with their states: the ids, the default first, and then the aliases."""
    models = ctx.models.status()
    return [(status.id, status) for status in models] + [(name, status) for status in models for name in status.aliases]


def tasks(info: ModelInfo) -> list[str]:
    """Return what a model does: ``generate``, and the tasks of its encoder."""
    return [*(("generate",) if info.generates else ()), *(info.encoder.tasks if info.encoder else ())]


def entry(status: ModelStatus, ctx: Context, name: str | None = None) -> dict[str, Any]:
    """Return a model's status and statistics as a dict, see ``ModelEntry``.

    Args:
        status: the model's status.
        ctx: the operation's context.
        name: the name by which it is listed: its id, which is the default, or an alias.
    """
    stats = ctx.model_stats(status.id)
    first = stats.time_to_first_token
    return {
        "id": name or status.id,
        "object": "model",
        "created": status.created,
        "owned_by": "warmstart",
        "root": status.id,
        "max_model_len": None if status.info is None else status.info.context_length,
        "state": status.state,
        "default": status.default and name in (None, status.id),
        "pinned": status.pinned,
        "source": status.source,
        "stage": status.stage,
        "progress": status.progress,
        "error": status.error,
        "engine": None if status.info is None else status.info.engine,
        "tasks": None if status.info is None else tasks(status.info),
        "weight_types": None if status.info is None else list(status.info.weight_types),
        "memory_bytes": status.memory_bytes,
        "reserved_bytes": status.reserved_bytes,
        "last_used": status.last_used,
        "running": status.running,
        "requests": stats.finished + stats.failed + stats.cancelled,
        "tokens_per_second": stats.tokens_per_second,
        "time_to_first_token_seconds": first.p50 if first else None,
    }
