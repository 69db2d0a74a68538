"""``completions``: OpenAI's older text completions, with ``echo`` and the log-probabilities of the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from handlers.context import Context
from handlers.generation.answer import Generation, Question, answering
from handlers.generation.checks import (
    check_min_tokens,
    check_prompt_chars,
    check_sequences,
    default_limit,
    encode_all,
    prompt_texts,
    remaining_context,
    sampling_params,
)
from handlers.generation.collect import Collected, collecting
from handlers.generation.logprobs import TextOffsets, columns, entries
from handlers.generation.openai_answer import PromptReport, chunk_usage, new_token_ids, report, reports_prompt, timings
from handlers.generation.prepared_request import PreparedRequest
from handlers.generation.scoring import score
from handlers.generation.structured import requested_grammar
from handlers.protocols import Engine
from handlers.schemas.openai import MAX_NEW_TOKENS
from handlers.schemas.parsing import parse, parse_stream
from handlers.schemas.requests import CompletionsRequest
from runtime.types import FinishReason, Job, SamplingParams, Token

DEFAULT_MAX_TOKENS = 16


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return whole completions; fields as in ``CompletionsRequest`` and ``CompletionsResponse``.

    Raises:
        InvalidRequest: a limit is exceeded.
        ServiceError: other errors of ``Models.lease``, ``Engine.stream`` and ``Context.reserve``.
    """
    request = parse(CompletionsRequest, payload)
    _check(request, ctx)
    async with _answering(request, ctx) as answer:
        choices = await _choices(request, answer, ctx)

        def render(collected: Collected) -> dict[str, Any]:
            return {
                **_head(answer.engine, ctx),
                "choices": [
                    choices.piece(i, text, reason)
                    for i, (text, reason) in enumerate(zip(collected.texts, collected.reasons, strict=True))
                ],
                "usage": collected.usage.openai(),
                **timings(request, answer, ctx),
            }

        return await answer.render(render)


async def stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """Yield completions as OpenAI's chunks: pieces of the choices' texts, and the usage if asked for."""
    request = parse_stream(CompletionsRequest, payload)
    _check(request, ctx)
    async with _answering(request, ctx) as answer:
        head = _head(answer.engine, ctx)
        choices = await _choices(request, answer, ctx)

        def chunk(index: int, text: str, reason: FinishReason | None) -> dict[str, Any]:
            piece = {"choices": [choices.piece(index, text, reason)]}
            return head | piece | chunk_usage(request, answer) | timings(request, answer, ctx)

        async for token in answer.tokens:
            if token.text or token.finish_reason:
                yield chunk(token.sequence, token.text, token.finish_reason)
        if not _limit(request):
            for index in range(answer.collected.sequences):
                yield chunk(index, "", "length")
        if request.include_usage:
            usage = {"usage": answer.collected.usage.openai()}
            yield head | {"choices": []} | usage | timings(request, answer, ctx)


def _check(request: CompletionsRequest, ctx: Context) -> None:
    """Run the checks that need no model."""
    check_prompt_chars(request.prompt, ctx, "prompt")
    check_sequences(len(request.prompt), request.n, ctx, "n")
    check_min_tokens(request.min_tokens, _limit(request), "min_tokens", "max_tokens (16 by default)")


def _limit(request: CompletionsRequest) -> int:
    if request.n_predict is None:
        return DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    wanted = MAX_NEW_TOKENS if request.n_predict < 0 else request.n_predict
    return wanted if request.max_tokens is None else min(wanted, request.max_tokens)


def _params(request: CompletionsRequest, engine: Engine) -> SamplingParams:
    return sampling_params(
        request,
        max_new_tokens=_limit(request),
        n=request.n,
        min_new_tokens=request.min_tokens,
        logprobs=request.logprobs,
        grammar=requested_grammar(request),
        defaults=engine.info.sampling_defaults,
    )


async def _prepare(request: CompletionsRequest, engine: Engine, ctx: Context) -> PreparedRequest:
    """Tokenize the prompts and check them against the model's limits."""
    params = _params(request, engine)
    jobs = []
    for ids in await encode_all(engine, request.prompt, ctx):
        limit = min(remaining_context(len(ids), engine.info.context_length, "prompt"), params.max_new_tokens)
        if params.max_new_tokens == MAX_NEW_TOKENS:
            limit = default_limit(engine, len(ids))
        check_min_tokens(request.min_tokens, limit, "min_tokens", "max_tokens (16 by default)")
        jobs.append(Job(ids, replace(params, max_new_tokens=limit), ctx.background))
    return PreparedRequest(engine, tuple(jobs))


@asynccontextmanager
async def _answering(request: CompletionsRequest, ctx: Context) -> AsyncIterator[Generation]:
    if _limit(request):
        async with answering(
            request,
            lambda engine: Question("text", request.prompt, _params(request, engine)),
            lambda engine: _prepare(request, engine, ctx),
            ctx,
        ) as answer:
            yield answer
        return
    async with ctx.models.lease(request.model) as engine:
        prompts = await encode_all(engine, request.prompt, ctx)
        await prompt_texts(engine, request.prompt, ctx)  # refuses unknown token ids, which no engine sees otherwise
        collected = Collected(sum(map(len, prompts)), len(prompts) * request.n)
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


@dataclass(slots=True)
class _Echo:
    """An echoed prompt: its text, its log-probability entries, and its tokens' offsets in characters."""

    text: str
    entries: list[dict[str, Any]]
    offsets: list[int]


@dataclass(slots=True)
class _Choices:
    """Builds the choices of a response, whole or piece by piece.

    Args:
        request: the validated request.
        answer: the generation that the choices come from.
        echoes: one per prompt; empty without ``echo``.
        offsets: one per choice, its token offsets; None before its first piece.
        reports: one per prompt; empty if nothing about the prompts was asked for.
    """

    request: CompletionsRequest
    answer: Generation
    echoes: list[_Echo]
    offsets: list[TextOffsets | None]
    reports: list[PromptReport]

    def piece(self, index: int, text: str, reason: FinishReason | None) -> dict[str, Any]:
        """Return a choice's text and log-probabilities since the last call; the first piece has the echo, too."""
        earlier, starts, offsets = list[dict[str, Any]](), list[int](), self.offsets[index]
        about = dict[str, Any]()
        if offsets is None:
            start = 0
            if self.echoes:
                echo = self.echoes[index // self.request.n]
                text, start = echo.text + text, len(echo.text)
                earlier, starts = [*echo.entries], [*echo.offsets]
            offsets = self.offsets[index] = TextOffsets(start)
            about = self.reports[index // self.request.n].members if self.reports else {}
        piece: dict[str, Any] = {"index": index, "text": text, "finish_reason": reason, "logprobs": None}
        if self.request.logprobs is not None:
            new = entries(self.answer.engine, self.answer.collected.take(index))
            starts += [offsets.add(bytes(entry["bytes"])) for entry in new]
            piece["logprobs"] = columns([*earlier, *new], starts)
        return piece | about | new_token_ids(self.request, self.answer, index)


async def _choices(request: CompletionsRequest, answer: Generation, ctx: Context) -> _Choices:
    engine, echoes, reports = answer.engine, list[_Echo](), list[PromptReport]()
    scored = request.echo and request.logprobs is not None
    ids = await encode_all(engine, request.prompt, ctx) if scored or reports_prompt(request) else []
    if request.echo:
        texts = await prompt_texts(engine, request.prompt, ctx)
        echoes = [
            await _echo(text, ids[i], request, engine, ctx) if scored else _Echo(text, [], [])
            for i, text in enumerate(texts)
        ]
    if reports_prompt(request):
        reports = [await report(request, prompt, engine, ctx) for prompt in ids]
    return _Choices(request, answer, echoes, [None] * answer.collected.sequences, reports)


async def _echo(text: str, ids: Sequence[int], request: CompletionsRequest, engine: Engine, ctx: Context) -> _Echo:
    """Return the echo of a prompt, with its tokens' log-probabilities."""
    first = Token(0, ids[0], "")
    scores = await score(engine, ids[:1], ids[1:], request.logprobs or 0, background=ctx.background)
    return await asyncio.to_thread(_locate_tokens, text, engine, [first, *scores])


def _locate_tokens(text: str, engine: Engine, tokens: Sequence[Token]) -> _Echo:
    """Build the echo from a prompt's tokens, and find each token's offset in the text."""
    listed = entries(engine, tokens)
    listed[0]["logprob"] = None
    raw, position, offsets, starts = text.encode(), 0, TextOffsets(), list[int]()
    for entry in listed:
        raw_token = bytes(entry["bytes"])
        # The text has neither the tokens nor the blank before the first word that the tokenizer adds.
        matched = next(
            (candidate for candidate in (raw_token, raw_token.lstrip(b" ")) if raw.startswith(candidate, position)), b""
        )
        position += len(matched)
        starts.append(offsets.add(matched))
    return _Echo(text, listed, starts)


def _head(engine: Engine, ctx: Context) -> dict[str, Any]:
    return {
        "id": f"cmpl-{ctx.new_id()}",
        "object": "text_completion",
        "created": int(ctx.clock.time()),
        "model": engine.info.name,
        "system_fingerprint": engine.info.system_fingerprint,
    }
