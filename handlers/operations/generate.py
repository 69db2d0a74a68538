"""``generate``: continue a prompt; prompt and continuation come back together."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from handlers.context import Context
from handlers.generation.text import answer, events
from handlers.schemas.parsing import parse
from handlers.schemas.requests import GenerateRequest


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """See ``GenerateRequest`` and ``TextResponse`` for the fields.

    Raises:
        ServiceError: see ``handlers.generation.text.plan`` and ``handlers.context``.
    """
    return await answer(parse(GenerateRequest, payload), ctx, echo=True)


def stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """The same, piece by piece (``TextChunk``)."""
    return events(parse(GenerateRequest, payload), ctx, echo=True)
