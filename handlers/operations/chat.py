"""``chat``: OpenAI's chat completions with the model's own chat template."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from handlers.context import Context
from handlers.generation.answer import Generation, Question, answering
from handlers.generation.checks import (
    chat_messages,
    check_min_tokens,
    check_prompt_chars,
    check_sequences,
    remaining_context,
    sampling_params,
)
from handlers.generation.collect import Collected
from handlers.generation.logprobs import entries
from handlers.generation.prepared_request import PreparedRequest
from handlers.generation.structured import requested_grammar
from handlers.protocols import Engine
from handlers.schemas.parsing import parse, parse_stream
from handlers.schemas.requests import ChatRequest
from runtime.types import Job, Message, SamplingParams

DEFAULT_MAX_TOKENS = 512


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return a whole chat completion; fields as in ``ChatRequest`` and ``ChatResponse``.

    Raises:
        InvalidRequest: a limit is exceeded, or the template refuses the messages.
        ServiceError: other errors of ``Models.lease``, ``Engine.stream`` and ``Context.reserve``.
    """
    request = parse(ChatRequest, payload)
    async with _answering(request, read(request, ctx), ctx) as answer:

        def render(collected: Collected) -> dict[str, Any]:
            choices = [
                {
                    "index": i,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": reason,
                    "logprobs": _logprobs(answer, i),
                }
                for i, (text, reason) in enumerate(zip(collected.texts, collected.reasons, strict=True))
            ]
            return {
                **_head(answer.engine, ctx, "chat.completion"),
                "choices": choices,
                "usage": collected.usage.openai(),
            }

        return await answer.render(render)


async def stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """Yield a chat completion as OpenAI's chunks: roles, deltas and finish reasons, and the usage if asked for."""
    request = parse_stream(ChatRequest, payload)
    include_usage = request.stream_options is not None and request.stream_options.include_usage
    started: set[int] = set()
    async with _answering(request, read(request, ctx), ctx) as answer:
        head = _head(answer.engine, ctx, "chat.completion.chunk")
        if include_usage:
            head["usage"] = None  # on every chunk but the last, as OpenAI does

        def chunk(
            index: int, delta: dict[str, str], logprobs: dict[str, Any] | None = None, reason: str | None = None
        ) -> dict[str, Any]:
            return head | {"choices": [{"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}]}

        async for token in answer.tokens:
            index = token.sequence
            if index not in started:
                started.add(index)
                yield chunk(index, {"role": "assistant", "content": ""})
            if token.text:
                yield chunk(index, {"content": token.text}, _logprobs(answer, index))
            if token.finish_reason is not None:
                yield chunk(index, {}, _logprobs(answer, index), token.finish_reason)
        if include_usage:
            yield head | {"choices": [], "usage": answer.collected.usage.openai()}


def read(request: ChatRequest, ctx: Context) -> tuple[Message, ...]:
    """Return the chat's messages after the checks that need no model.

    Raises:
        InvalidRequest: a limit is exceeded.
    """
    messages = chat_messages((message.role, message.content) for message in request.messages)
    check_prompt_chars([message.content for message in messages], ctx, "messages")
    check_sequences(1, request.n, ctx, "n")
    return messages


async def prepare(request: ChatRequest, messages: Sequence[Message], engine: Engine, ctx: Context) -> PreparedRequest:
    """Tokenize a chat and check it against the model's limits.

    Raises:
        InvalidRequest: a limit is exceeded, or the template refuses the messages.
        ContextLengthExceeded: the chat fills the model's context.
    """
    ids = await engine.encode_chat(messages, background=ctx.background)
    params = _params(request, engine.chat_stops)
    limit = min(remaining_context(len(ids), engine.info.context_length, "messages"), params.max_new_tokens)
    check_min_tokens(request.min_tokens, limit, "min_tokens", "max_tokens (512 by default)")
    return PreparedRequest(engine, (Job(ids, replace(params, max_new_tokens=limit), ctx.background, "messages"),))


def _params(request: ChatRequest, stops: Sequence[str] = ()) -> SamplingParams:
    limits = [limit for limit in (request.max_tokens, request.max_completion_tokens) if limit is not None]
    return sampling_params(
        request,
        max_new_tokens=min(limits or [DEFAULT_MAX_TOKENS]),
        n=request.n,
        min_new_tokens=request.min_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        stop=stops,
        grammar=requested_grammar(request),
    )


def _answering(
    request: ChatRequest, messages: Sequence[Message], ctx: Context
) -> AbstractAsyncContextManager[Generation]:
    question = Question("chat", messages, _params(request))
    return answering(request, question, lambda engine: prepare(request, messages, engine, ctx), ctx)


def _logprobs(answer: Generation, index: int) -> dict[str, Any] | None:
    """Return the log-probabilities of the tokens since the last call; None if there are none or none were asked for."""
    tokens = answer.collected.take(index)
    return {"content": entries(answer.engine, tokens)} if tokens else None


def _head(engine: Engine, ctx: Context, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{ctx.new_id()}",
        "object": kind,
        "created": int(ctx.clock.time()),
        "model": engine.info.name,
    }
