"""``rerank``: documents ranked by their relevance to a query, in the form of Cohere's, Jina's and vLLM's APIs."""

from __future__ import annotations

from typing import Any

from handlers.context import Context
from handlers.encoding.encode import usage_object
from handlers.encoding.relevance import Texts, relevance
from handlers.schemas.parsing import parse
from handlers.schemas.relevance import RerankRequest


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return ranked documents; fields as in ``RerankRequest`` and ``RerankResponse``.

    Raises:
        InvalidRequest: a limit is exceeded, or the model neither ranks nor computes vectors.
        ServiceError: other errors of ``Models.lease``, ``Encoder`` and ``Context.reserve``.
    """
    request = parse(RerankRequest, payload)
    texts = request.texts
    async with ctx.models.lease(request.model) as engine:
        found = await relevance(
            request,
            Texts([request.query], "query", listed=False),
            Texts(texts, "documents", listed=True),
            engine,
            ctx,
            document_tokens=request.max_tokens_per_doc,
        )
        order = sorted(range(len(texts)), key=lambda index: -found.scores[index])[: request.top_n]
        results = [
            {"index": index, "relevance_score": found.scores[index]}
            | ({"document": {"text": texts[index]}} if request.return_documents else {})
            for index in order
        ]
        return {
            "id": f"rerank-{ctx.new_id()}",
            "object": "list",
            "model": engine.info.name,
            "results": results,
            "usage": usage_object(found.usage),
            "meta": {"tokens": {"input_tokens": found.usage.prompt_tokens, "output_tokens": 0}},
        }
