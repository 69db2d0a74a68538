"""``completions``: OpenAI's older text completions, with ``echo`` and the log-probabilities of the prompt."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from handlers.context import Context
from handlers.generation.answer import Generation, Question, answering
from handlers.generation.checks import (
    check_min_tokens,
    check_prompt_chars,
    check_sequences,
    default_limit,
    prompt_texts,
    remaining_context,
    sampling_params,
)
from handlers.generation.collect import Collected, collecting
from handlers.generation.completion_choices import Ranking, choices_of, encode_prompts, new_tokens
from handlers.generation.openai_answer import chunk_usage, timings
from handlers.generation.prepared_request import PreparedRequest
from handlers.generation.structured import requested_grammar
from handlers.protocols import Engine
from handlers.schemas.openai import MAX_NEW_TOKENS
from handlers.schemas.parsing import parse, parse_stream
from handlers.schemas.requests import CompletionsRequest
from runtime.types import FinishReason, Job, SamplingParams, Token


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return whole completions; fields as in ``CompletionsRequest`` and ``CompletionsResponse``.

    Raises:
        InvalidRequest: a limit is exceeded.
        ServiceError: other errors of ``Models.lease``, ``Engine.stream`` and ``Context.reserve``.
    """
    request = parse(CompletionsRequest, payload)
    _check(request, ctx)
    async with _answering(request, ctx) as answer:
        choices = await choices_of(request, answer, ctx)
        ranking = Ranking(request, answer.collected.sequences)

        def render(collected: Collected) -> dict[str, Any]:
            texts = collected.texts
            pieces = [choices.piece(i, texts[i], collected.reasons[i], collected.last[i]) for i in ranking.best()]
            return {
                **_head(request, answer.engine, ctx),
                "choices": [piece | {"index": index} for index, piece in enumerate(pieces)],
                "usage": collected.usage.openai(),
                **timings(request, answer, ctx),
            }

        return await answer.render(render, ranking.add)


async def stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """Yield completions as OpenAI's chunks: pieces of the choices' texts, and the usage if asked for."""
    request = parse_stream(CompletionsRequest, payload)
    _check(request, ctx)
    async with _answering(request, ctx) as answer:
        head = _head(request, answer.engine, ctx)
        choices = await choices_of(request, answer, ctx)

        def chunk(index: int, text: str, reason: FinishReason | None, token: Token | None = None) -> dict[str, Any]:
            piece = {"choices": [choices.piece(index, text, reason, token)]}
            return head | piece | chunk_usage(request, answer) | timings(request, answer, ctx)

        async for token in answer.tokens:
            if token.text or token.finish_reason:
                yield chunk(token.sequence, token.text, token.finish_reason, token)
        if not new_tokens(request):
            for index in range(answer.collected.sequences):
                yield chunk(index, "", "length")
        if request.include_usage:
            usage = {"usage": answer.collected.usage.openai()}
            yield head | {"choices": []} | usage | timings(request, answer, ctx)


def _check(request: CompletionsRequest, ctx: Context) -> None:
    """Run the checks that need no model."""
    check_prompt_chars(request.prompt, ctx, "prompt")
    check_sequences(len(request.prompt), request.generated, ctx, "n" if request.generated == request.n else "best_of")
    check_min_tokens(request.min_tokens, new_tokens(request), "min_tokens", "max_tokens (16 by default)")


def _params(request: CompletionsRequest, engine: Engine) -> SamplingParams:
    ranked = request.generated > request.n
    return sampling_params(
        request,
        max_new_tokens=new_tokens(request),
        n=request.generated,
        min_new_tokens=request.min_tokens,
        logprobs=0 if ranked and request.logprobs is None else request.logprobs,
        grammar=requested_grammar(request),
        defaults=engine.info.sampling_defaults,
    )


async def _prepare(request: CompletionsRequest, engine: Engine, ctx: Context) -> PreparedRequest:
    """Tokenize the prompts and check them against the model's limits."""
    params = _params(request, engine)
    jobs = []
    for ids in await encode_prompts(request, engine, ctx):
        limit = min(remaining_context(len(ids), engine.info.context_length, "prompt"), params.max_new_tokens)
        if params.max_new_tokens == MAX_NEW_TOKENS:
            limit = default_limit(engine, len(ids))
        check_min_tokens(request.min_tokens, limit, "min_tokens", "max_tokens (16 by default)")
        salt = request.cache_salt or ""
        jobs.append(Job(ids, replace(params, max_new_tokens=limit), ctx.background, cache_salt=salt))
    return PreparedRequest(engine, tuple(jobs))


@asynccontextmanager
async def _answering(request: CompletionsRequest, ctx: Context) -> AsyncIterator[Generation]:
    if new_tokens(request):
        async with answering(
            request,
            lambda engine: Question("text", request.prompt, _params(request, engine), prompt=request.prompt_options),
            lambda engine: _prepare(request, engine, ctx),
            ctx,
        ) as answer:
            yield answer
        return
    async with ctx.models.lease(request.model) as engine:
        prompts = await encode_prompts(request, engine, ctx)
        await prompt_texts(engine, request.prompt, ctx)  # refuses unknown token ids, which no engine sees otherwise
        collected = Collected(sum(map(len, prompts)), len(prompts) * request.generated)
        commit = await ctx.reserve(collected.prompt_tokens)
        try:
            async with collecting(collected, _no_tokens(), ctx) as (_, tokens):
                yield Generation(engine, collected, tokens)
        finally:
            await commit(collected.prompt_tokens)


async def _no_tokens() -> AsyncIterator[Token]:
    no_tokens: tuple[Token, ...] = ()
    for token in no_tokens:
        yield token


def _head(request: CompletionsRequest, engine: Engine, ctx: Context) -> dict[str, Any]:
    return {
        "id": f"cmpl-{request.request_id or ctx.new_id()}",
        "object": "text_completion",
        "created": int(ctx.clock.time()),
        "model": engine.info.name,
        "system_fingerprint": engine.info.system_fingerprint,
    }
