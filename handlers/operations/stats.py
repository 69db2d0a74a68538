"""``stats``: statistics of the service, its models and its response cache, also shown on the web page."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from handlers.context import Context
from handlers.operations import cache
from handlers.schemas.base import Empty
from handlers.schemas.parsing import parse

_SUMS = (
    "running",
    "waiting",
    "queued",
    "finished",
    "failed",
    "cancelled",
    "rejected",
    "prompt_tokens",
    "cached_tokens",
    "generated_tokens",
    "tokens_per_second",
)


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the statistics, see ``StatsResponse``. Never loads a model or waits for one."""
    parse(Empty, payload)
    models = [(status, ctx.model_stats(status.id)) for status in ctx.models.status()]
    return {
        "time": ctx.clock.time(),
        "version": ctx.version,
        "uptime_seconds": round(ctx.clock.monotonic() - ctx.started, 3),
        "memory": asdict(ctx.memory()) | {"models_bytes": sum(status.memory_bytes for status, _ in models)},
        "total": {name: sum(getattr(stats, name) for _, stats in models) for name in _SUMS},
        "models": [
            {
                "id": status.id,
                "state": status.state,
                "default": status.default,
                "memory_bytes": status.memory_bytes,
                **asdict(stats),
            }
            for status, stats in models
        ],
        "cache": await cache.report(ctx),
    }
