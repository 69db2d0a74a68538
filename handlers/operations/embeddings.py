"""``embeddings``: OpenAI's embeddings, the vectors of texts."""

from __future__ import annotations

import asyncio
from typing import Any

from handlers.context import Context
from handlers.encoding.encode import Encoded, encode, usage_object
from handlers.encoding.inputs import Inputs, Item, chosen_prompt, encoder_info, is_list_of_inputs
from handlers.encoding.vectors import base64_text, numbers, shortened
from handlers.schemas.embeddings import EmbeddingsRequest
from handlers.schemas.parsing import parse
from runtime.encoder_types import EncoderInfo
from runtime.errors import InvalidRequest

_MAX_NUMBERS_ON_LOOP = 10_000  # rendered on the event loop, which takes a millisecond


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the vectors of texts; fields as in ``EmbeddingsRequest`` and ``EmbeddingsResponse``.

    Raises:
        InvalidRequest: a limit is exceeded, or the model has neither such vectors nor such a prompt.
        ServiceError: other errors of ``Models.lease``, ``Encoder.embed`` and ``Context.reserve``.
    """
    request = parse(EmbeddingsRequest, payload)
    async with ctx.models.lease(request.model) as engine:
        info = encoder_info(engine.info, "embed")
        _check(request, info)
        prompt = chosen_prompt(request.prompt_name, request.input_type, info)
        items: list[Item] = [item if isinstance(item, str) else tuple(item) for item in request.input]
        listed = is_list_of_inputs(payload["input"])
        inputs = Inputs(items, "input", listed, prompt, *request.cut(info.max_tokens))
        encoded = await encode(engine, "embed", inputs, ctx, request.cache_control)
        if info.width * len(items) > _MAX_NUMBERS_ON_LOOP:
            rendered = await asyncio.to_thread(_rendered, request, encoded, info)
        else:
            rendered = _rendered(request, encoded, info)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(rendered)
            ],
            "model": engine.info.name,
            "usage": usage_object(encoded.usage),
        }


def _check(request: EmbeddingsRequest, info: EncoderInfo) -> None:
    """Check what depends on the model: the dimensions, the length, and prompts before token ids."""
    size = request.dimensions
    if size is not None and size != info.width and size not in info.dimensions:
        allowed = ", ".join(map(str, [*info.dimensions, info.width]))
        raise InvalidRequest(
            f"dimensions: {size} is not a number of dimensions that this model's vectors can have; allowed: {allowed}",
            param="dimensions",
        )
    if request.normalize is False and info.normalized:
        raise InvalidRequest("normalize: this model's vectors have the length 1", param="normalize")
    if request.prompt_name is not None and not all(isinstance(item, str) for item in request.input):
        raise InvalidRequest("prompt_name: a prompt cannot be put before token ids", param="prompt_name")


def _rendered(request: EmbeddingsRequest, encoded: Encoded, info: EncoderInfo) -> list[Any]:
    """Return each vector as the request wants it."""
    cut = request.dimensions if request.dimensions != info.width else None
    unit = bool(request.normalize) if cut is None else info.normalized or bool(request.normalize)
    unit = unit and not (cut is None and info.normalized)  # these have the length already
    vectors = [shortened(vector, cut, unit=unit) for vector in encoded.values]
    return [base64_text(vector) for vector in vectors] if request.encoding_format == "base64" else numbers(vectors)
