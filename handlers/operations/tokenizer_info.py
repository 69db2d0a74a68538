"""``tokenizer_info``: what a client needs to format chats itself, in vLLM's form, which lm-evaluation-harness reads."""

from __future__ import annotations

from typing import Any

from handlers.context import Context
from handlers.schemas.base import ModelChoice
from handlers.schemas.parsing import parse


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the model's special tokens and chat template, see ``TokenizerInfoResponse``.

    Raises:
        ServiceError: errors of ``Models.lease``.
    """
    async with ctx.models.lease(parse(ModelChoice, payload).model) as engine:
        return {
            "model_max_length": engine.info.context_length,
            "chat_template": engine.chat_template,
            **{name: engine.special_tokens.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")},
        }
