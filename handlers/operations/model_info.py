"""``model_info``: a model's metadata. Loads the model if it is not loaded."""

from __future__ import annotations

from dataclasses import asdict, replace
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
        info = engine.info
        encoder = None if info.encoder is None else _lists(asdict(info.encoder))
        return asdict(replace(info, encoder=None)) | {
            "encoder": encoder,
            "capabilities": [*(CAPABILITIES if info.generates else ()), *(info.encoder.tasks if info.encoder else ())],
            "memory_bytes": engine.memory_bytes,
            "sampling_defaults": dict(info.sampling_defaults),
            "optimizations": list(info.optimizations),
            "weight_types": list(info.weight_types),
        }


def _lists(members: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in members.items()}
