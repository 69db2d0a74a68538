"""``generate``: continue a prompt; the response has the prompt and its continuation."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from handlers.context import Context
from handlers.generation.text import answer, events
from handlers.schemas.parsing import parse
from handlers.schemas.requests import GenerateRequest


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return whole texts; fields as in ``GenerateRequest`` and ``TextResponse``.

    Raises:
        ServiceError: errors of ``handlers.generation.text.answer``.
    """
    return await answer(parse(GenerateRequest, payload), ctx, echo=True)


def stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the texts in pieces (``TextChunk``)."""
    return events(parse(GenerateRequest, payload), ctx, echo=True)
