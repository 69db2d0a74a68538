"""Text in, text out: what ``generate`` and ``complete`` share. They differ in whether the prompt is repeated."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from handlers.context import Context
from handlers.generation import (
    Collected,
    Plan,
    check_least,
    check_logit_bias,
    check_prompt_chars,
    check_sequences,
    encode_all,
    generating,
    room,
    run,
    sampling_params,
)
from handlers.logprobs import entries
from handlers.schemas.requests import CompleteRequest, GenerateRequest
from runtime.errors import InvalidRequest
from runtime.types import Job

TextRequest = GenerateRequest | CompleteRequest


async def plan(request: TextRequest, ctx: Context) -> Plan:
    """Check a request against the limits and the model, and tokenize it.

    Raises:
        InvalidRequest: a limit is exceeded.
        ContextLengthExceeded: a prompt does not fit.
    """
    check_prompt_chars(request.prompt, ctx, "prompt")
    check_sequences(len(request.prompt), request.num_return_sequences, ctx, "num_return_sequences")
    engine = await ctx.models.engine(request.model)
    check_logit_bias(request, engine)
    jobs = []
    for ids in await encode_all(engine, request.prompt):
        limit = room(len(ids), engine.info.context_length, "prompt")
        if request.max_new_tokens is None or "max_length" in request.model_fields_set:
            if len(ids) >= request.max_length:
                raise InvalidRequest(
                    f"max_length: {request.max_length} leaves no room after a prompt of {len(ids)} tokens; "
                    "raise it or give max_new_tokens",
                    param="max_length",
                )
            limit = min(limit, request.max_length - len(ids))
        if request.max_new_tokens is not None:
            limit = min(limit, request.max_new_tokens)
        check_least(request.min_new_tokens, limit, "min_new_tokens", "max_new_tokens, max_length")
        params = sampling_params(
            request,
            max_new_tokens=limit,
            n=request.num_return_sequences,
            min_new_tokens=request.min_new_tokens,
            logprobs=request.logprobs,
        )
        jobs.append(Job(ids, params))
    return Plan(engine, tuple(jobs))


async def answer(request: TextRequest, ctx: Context, *, echo: bool) -> dict[str, Any]:
    """The whole answer; see ``handlers.schemas.responses.TextResponse``."""
    ready = await plan(request, ctx)
    collected = await run(ready, ctx)
    sequences = [
        {"index": i, "text": _prefix(request, i, echo) + text, "finish_reason": reason}
        | _logprobs(request, ready, collected, i)
        for i, (text, reason) in enumerate(zip(collected.texts, collected.reasons, strict=True))
    ]
    return {
        "text": sequences[0]["text"],
        "sequences": sequences,
        "model": ready.engine.info.name,
        "usage": collected.usage(),
    }


async def events(request: TextRequest, ctx: Context, *, echo: bool) -> AsyncGenerator[dict[str, Any], None]:
    """The answer as pieces (``handlers.schemas.responses.TextChunk``); joined, an index's texts are ``answer``'s."""
    ready = await plan(request, ctx)
    begun: set[int] = set()
    async with generating(ready, ctx) as (collected, tokens):
        async for token in tokens:
            if token.text or token.finish_reason:
                prefix = "" if token.sequence in begun else _prefix(request, token.sequence, echo)
                begun.add(token.sequence)
                piece = {"index": token.sequence, "text": prefix + token.text, "finish_reason": token.finish_reason}
                yield piece | _logprobs(request, ready, collected, token.sequence)
    yield {"model": ready.engine.info.name, "usage": collected.usage()}


def _prefix(request: TextRequest, index: int, echo: bool) -> str:
    return request.prompt[index // request.num_return_sequences] if echo else ""


def _logprobs(request: TextRequest, ready: Plan, collected: Collected, index: int) -> dict[str, Any]:
    return {} if request.logprobs is None else {"logprobs": entries(ready.engine, collected.take(index))}
