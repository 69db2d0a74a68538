"""``health``: the state of the service and its models. Never waits and never loads a model."""

from __future__ import annotations

from typing import Any

from handlers.context import Context
from handlers.protocols import Models
from handlers.schemas.base import Empty
from handlers.schemas.parsing import parse

_STATUS = {"ready": "ok", "loading": "loading", "unloaded": "idle", "failed": "failed", "draining": "draining"}


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the state of the service and of each model, see ``HealthResponse``."""
    parse(Empty, payload)
    models = ctx.models.status()
    return {
        "status": _STATUS[default_state(ctx.models)],
        "version": ctx.version,
        "uptime_seconds": round(ctx.clock.monotonic() - ctx.started, 3),
        "models": [
            {"id": m.id, "state": m.state, "stage": m.stage, "progress": m.progress, "error": m.error} for m in models
        ],
    }


def default_state(models: Models) -> str:
    """Return the default model's state as health checks report it.

    Args:
        models: the model registry.

    Returns:
        ``draining`` if the service is shutting down; ``failed`` if the model is loaded and its engine thread does not
        run or does not progress; otherwise the model's state.
    """
    if models.draining:
        return "draining"
    state = models.status()[0].state
    return "failed" if state == "ready" and not models.ready else state
