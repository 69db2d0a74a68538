"""``model_info``: what is known of a model. Needs it loaded, and so loads it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from handlers.context import Context
from handlers.schemas.parsing import parse
from handlers.schemas.requests import ModelChoice

CAPABILITIES = ["generate", "complete", "chat", "streaming", "seed", "stop", "batch"]


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """See ``ModelInfoResponse``.

    Raises:
        ServiceError: the model is unknown, still loading, or unavailable.
    """
    engine = await ctx.models.engine(parse(ModelChoice, payload).model)
    facts = asdict(engine.info)
    return facts | {
        "capabilities": CAPABILITIES,
        "memory_bytes": engine.memory_bytes,
        "optimizations": list(engine.info.optimizations),
    }
