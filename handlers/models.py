"""``models``: the models that this service answers for, in OpenAI's list shape with their state beside it."""

from __future__ import annotations

from typing import Any

from handlers.context import Context
from handlers.schemas.parsing import parse
from handlers.schemas.requests import Empty


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """See ``ModelsResponse``."""
    parse(Empty, payload)
    return {
        "object": "list",
        "data": [
            {
                "id": m.id,
                "object": "model",
                "created": m.created,
                "owned_by": "warmstart",
                "state": m.state,
                "default": m.default,
                "source": m.source,
            }
            for m in ctx.models.status()
        ],
    }
