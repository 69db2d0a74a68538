"""``chat``: OpenAI's chat completions over the model's own chat template."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from handlers.context import Context
from handlers.generation import (
    Collected,
    Plan,
    chat_messages,
    check_least,
    check_logit_bias,
    check_prompt_chars,
    check_sequences,
    generating,
    room,
    run,
    sampling_params,
)
from handlers.logprobs import entries
from handlers.schemas.parsing import parse
from handlers.schemas.requests import ChatRequest
from runtime.types import Job

DEFAULT_MAX_TOKENS = 512


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """See ``ChatRequest`` and ``ChatResponse`` for the fields.

    Raises:
        ServiceError: see ``handlers.context``; ``InvalidRequest`` if a limit is exceeded or the template refuses.
    """
    request = parse(ChatRequest, payload)
    ready = await _plan(request, ctx)
    collected = await run(ready, ctx)
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": text},
            "finish_reason": reason,
            "logprobs": _logprobs(ready, collected, i),
        }
        for i, (text, reason) in enumerate(zip(collected.texts, collected.reasons, strict=True))
    ]
    return {**_head(ready, ctx, "chat.completion"), "choices": choices, "usage": collected.usage()}


async def stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """The same as OpenAI's chunks: a role chunk per answer, deltas, the finish reason, and the usage if asked for."""
    request = parse(ChatRequest, payload)
    include_usage = request.stream_options is not None and request.stream_options.include_usage
    ready = await _plan(request, ctx)
    head = _head(ready, ctx, "chat.completion.chunk")
    if include_usage:
        head["usage"] = None  # on every chunk but the last, as OpenAI does

    def chunk(
        index: int, delta: dict[str, str], logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        return head | {"choices": [{"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}]}

    begun: set[int] = set()
    async with generating(ready, ctx) as (collected, tokens):
        async for token in tokens:
            index = token.sequence
            if index not in begun:
                begun.add(index)
                yield chunk(index, {"role": "assistant", "content": ""})
            if token.text:
                yield chunk(index, {"content": token.text}, _logprobs(ready, collected, index))
            if token.finish_reason is not None:
                yield chunk(index, {}, _logprobs(ready, collected, index), token.finish_reason)
    if include_usage:
        yield head | {"choices": [], "usage": collected.usage()}


async def _plan(request: ChatRequest, ctx: Context) -> Plan:
    messages = chat_messages((message.role, message.content) for message in request.messages)
    check_prompt_chars([message.content for message in messages], ctx, "messages")
    check_sequences(1, request.n, ctx, "n")
    engine = await ctx.models.engine(request.model)
    check_logit_bias(request, engine)
    ids = await engine.encode_chat(messages)
    asked = [limit for limit in (request.max_tokens, request.max_completion_tokens) if limit is not None]
    limit = min(room(len(ids), engine.info.context_length, "messages"), *(asked or [DEFAULT_MAX_TOKENS]))
    check_least(request.min_tokens, limit, "min_tokens", "max_tokens (512 by default)")
    params = sampling_params(
        request,
        max_new_tokens=limit,
        n=request.n,
        min_new_tokens=request.min_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        stop=engine.chat_stops,
    )
    return Plan(engine, (Job(ids, params),))


def _logprobs(ready: Plan, collected: Collected, index: int) -> dict[str, Any] | None:
    """Of the tokens since the last call; None if there are none, or none were asked for."""
    tokens = collected.take(index)
    return {"content": entries(ready.engine, tokens)} if tokens else None


def _head(ready: Plan, ctx: Context, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{ctx.new_id()}",
        "object": kind,
        "created": int(ctx.clock.time()),
        "model": ready.engine.info.name,
    }
