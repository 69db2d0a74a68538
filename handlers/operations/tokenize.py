"""``tokenize``: the token ids of a text or chat, in vLLM's and llama.cpp's form."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from handlers.context import Context
from handlers.generation.checks import chat_messages, check_chat_chars, check_prompt_chars
from handlers.generation.tools import told_tools
from handlers.protocols import Engine
from handlers.schemas.parsing import parse
from handlers.schemas.tokens import TokenizeRequest


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return a text's or a chat's tokens; fields as in ``TokenizeRequest`` and ``TokenizeResponse``.

    Raises:
        InvalidRequest: a limit is exceeded, or the template refuses the messages.
        ServiceError: errors of ``Models.lease`` and of the engine's tokenization.
    """
    request = parse(TokenizeRequest, payload)
    messages = chat_messages(request.messages or ())
    text = request.content if request.prompt is None else request.prompt
    if text is None:
        check_chat_chars(messages, request.functions, ctx)
    else:
        check_prompt_chars([text], ctx, "content" if request.prompt is None else "prompt")
    async with ctx.models.lease(request.model) as engine:
        if text is None:
            options = request.template_options(add_special_tokens=request.special)
            tools = told_tools(request.functions)
            ids = await engine.encode_chat(messages, tools=tools, options=options, background=ctx.background)
        elif request.parse_special:
            special = request.content is None if request.special is None else request.special
            ids = await engine.encode_text(text, add_special_tokens=special, background=ctx.background)
        else:
            ids = await engine.encode_plain(text, background=ctx.background)
        return await asyncio.to_thread(_render, request, ids, engine)


def _render(request: TokenizeRequest, ids: Sequence[int], engine: Engine) -> dict[str, Any]:
    return {
        "tokens": [_piece(engine, token_id) for token_id in ids] if request.with_pieces else list(ids),
        "count": len(ids),
        "max_model_len": engine.info.context_length,
        "token_strs": [engine.token_name(token_id) for token_id in ids] if request.return_token_strs else None,
    }


def _piece(engine: Engine, token_id: int) -> dict[str, Any]:
    raw = engine.token_bytes(token_id)
    try:
        return {"id": token_id, "piece": raw.decode()}
    except UnicodeDecodeError:
        return {"id": token_id, "piece": list(raw)}
