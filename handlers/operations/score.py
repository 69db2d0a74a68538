"""``score``: the relevance of pairs of a query and a document, in the form of vLLM's score API."""

from __future__ import annotations

from typing import Any

from handlers.context import Context
from handlers.encoding.encode import usage_object
from handlers.encoding.relevance import Texts, relevance
from handlers.schemas.parsing import parse
from handlers.schemas.relevance import ScoreRequest
from runtime.errors import InvalidRequest


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the scores of pairs; fields as in ``ScoreRequest`` and ``ScoreResponse``.

    Raises:
        InvalidRequest: a limit is exceeded, the numbers of texts differ, or the model cannot score.
        ServiceError: other errors of ``Models.lease``, ``Encoder`` and ``Context.reserve``.
    """
    request = parse(ScoreRequest, payload)
    first, second = request.names
    queries, documents = (
        Texts(getattr(request, name), name, listed=isinstance(payload[name], list)) for name in (first, second)
    )
    if len(queries.texts) not in (1, len(documents.texts)):
        raise InvalidRequest(
            f"{first}: give one text, or as many as {second} has: {len(queries.texts)} are not {len(documents.texts)}",
            param=first,
        )
    async with ctx.models.lease(request.model) as engine:
        found = await relevance(request, queries, documents, engine, ctx)
        return {
            "id": f"score-{ctx.new_id()}",
            "object": "list",
            "created": int(ctx.clock.time()),
            "model": engine.info.name,
            "data": [{"index": index, "object": "score", "score": score} for index, score in enumerate(found.scores)],
            "usage": usage_object(found.usage),
        }
