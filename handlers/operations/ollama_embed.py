"""``ollama_embed`` and ``ollama_embeddings``: the vectors of texts as Ollama's API returns them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from handlers.context import Context
from handlers.generation.ollama_output import nanoseconds
from handlers.generation.translated_errors import renaming
from handlers.operations import embeddings
from handlers.schemas.ollama import OllamaEmbeddingsRequest, OllamaEmbedRequest
from handlers.schemas.parsing import parse


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the vectors of texts; fields as in ``OllamaEmbedRequest`` and ``OllamaEmbedResponse``.

    Raises:
        InvalidRequest: a limit is exceeded, or the model has no vectors.
        ServiceError: other errors of the operation ``embeddings``.
    """
    started = ctx.clock.monotonic()
    request = parse(OllamaEmbedRequest, payload)
    async with ctx.models.lease(request.model) as engine:
        name = request.model or engine.info.name
    loaded = ctx.clock.monotonic() - started
    cut = {"truncate": request.truncate, "dimensions": request.dimensions}
    vectors, tokens = await _vectors(request.model, request.input, cut | {"normalize": True}, ctx)
    return {
        "model": name,
        "embeddings": vectors,
        "total_duration": nanoseconds(ctx.clock.monotonic() - started),
        "load_duration": nanoseconds(loaded),
        "prompt_eval_count": tokens,
    }


async def handle_one(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the vector of one text; fields as in ``OllamaEmbeddingsRequest`` and ``OllamaEmbeddingsResponse``.

    Raises:
        ServiceError: the errors of ``handle``.
    """
    request = parse(OllamaEmbeddingsRequest, payload)
    with renaming(((r"input\b.*", "prompt"),)):
        vectors, _ = await _vectors(request.model, [request.prompt], {"truncate": True}, ctx)
    return {"embedding": vectors[0] if vectors else []}


async def _vectors(
    model: str | None, texts: Sequence[str], fields: Mapping[str, Any], ctx: Context
) -> tuple[list[list[float]], int]:
    """Return the vectors of texts, and the number of their tokens; without a text only load the model."""
    if not any(texts):
        async with ctx.models.lease(model):
            return [], 0
    answer = await embeddings.handle(
        {"model": model, "input": texts[0] if len(texts) == 1 else list(texts), **fields}, ctx
    )
    return [item["embedding"] for item in answer["data"]], answer["usage"]["prompt_tokens"]
