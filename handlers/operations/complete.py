"""``complete``: complete a prompt; only the completion comes back, unless ``echo`` asks for the prompt too."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from handlers.context import Context
from handlers.generation.text import answer, events
from handlers.schemas.parsing import parse
from handlers.schemas.requests import CompleteRequest


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """See ``CompleteRequest`` and ``TextResponse`` for the fields.

    Raises:
        ServiceError: see ``handlers.generation.text.plan`` and ``handlers.context``.
    """
    request = parse(CompleteRequest, payload)
    return await answer(request, ctx, echo=request.echo)


def stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """The same, piece by piece (``TextChunk``)."""
    request = parse(CompleteRequest, payload)
    return events(request, ctx, echo=request.echo)
