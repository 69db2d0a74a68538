"""``complete``: complete a prompt; the response has the completion only, or the prompt, too, with ``echo``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from handlers.context import Context
from handlers.generation.text import answer, events
from handlers.schemas.parsing import parse
from handlers.schemas.requests import CompleteRequest


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return whole texts; fields as in ``CompleteRequest`` and ``TextResponse``.

    Raises:
        ServiceError: errors of ``handlers.generation.text.answer``.
    """
    request = parse(CompleteRequest, payload)
    return await answer(request, ctx, echo=request.echo)


def stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the texts in pieces (``TextChunk``)."""
    request = parse(CompleteRequest, payload)
    return events(request, ctx, echo=request.echo)
