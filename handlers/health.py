"""``health``: the service's own view of itself. Never waits and never loads a model."""

from __future__ import annotations

from typing import Any

from handlers.context import Context
from handlers.schemas.parsing import parse
from handlers.schemas.requests import Empty
from runtime.types import ModelStatus

_STATUS = {"ready": "ok", "loading": "loading", "unloaded": "idle", "failed": "failed"}


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """See ``HealthResponse``."""
    parse(Empty, payload)
    models = ctx.models.status()
    return {
        "status": _status(models[0], ctx),
        "version": ctx.version,
        "uptime_seconds": round(ctx.clock.monotonic() - ctx.started, 3),
        "models": [
            {"id": m.id, "state": m.state, "stage": m.stage, "progress": m.progress, "error": m.error} for m in models
        ],
    }


def _status(default: ModelStatus, ctx: Context) -> str:
    if ctx.models.draining:
        return "draining"
    if default.state == "ready" and not ctx.models.ready:  # loaded, but its worker is gone
        return "failed"
    return _STATUS[default.state]
