"""``detokenize``: the text of token ids, in vLLM's and llama.cpp's form."""

from __future__ import annotations

from typing import Any

from handlers.context import Context
from handlers.generation.checks import check_prompt_chars
from handlers.schemas.parsing import parse
from handlers.schemas.tokens import DetokenizeRequest


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the text of token ids; fields as in ``DetokenizeRequest`` and ``DetokenizeResponse``.

    Raises:
        InvalidRequest: the model does not have one of the ids, or there are too many.
        ServiceError: errors of ``Models.lease``.
    """
    request = parse(DetokenizeRequest, payload)
    check_prompt_chars([request.tokens], ctx, "tokens")
    async with ctx.models.lease(request.model) as engine:
        text = await engine.decode(request.tokens, "tokens", background=ctx.background)
    return {"prompt": text, "content": text}
