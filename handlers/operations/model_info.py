"""``model_info``: a model's metadata. Loads the model if it is not loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from handlers.context import Context
from handlers.schemas.base import ModelChoice
from handlers.schemas.parsing import parse

CAPABILITIES = ["generate", "complete", "chat", "streaming", "seed", "stop", "batch"]


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return a model's metadata, see ``ModelInfoResponse``.

    Raises:
        ServiceError: the model is unknown, still loading, or unavailable.
    """
    async with ctx.models.lease(parse(ModelChoice, payload).model) as engine:
        return asdict(engine.info) | {
            "capabilities": CAPABILITIES,
            "memory_bytes": engine.memory_bytes,
            "sampling_defaults": dict(engine.info.sampling_defaults),
            "optimizations": list(engine.info.optimizations),
            "weight_types": list(engine.info.weight_types),
        }
