"""``compare``: run one prompt or chat through several models or settings at the same time.

Each variant holds its own lease on its model and releases it when it ends; no variant waits for a lease while it holds
another. So two models that do not fit in memory together run one after the other, and no order of arrival can deadlock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from handlers.context import Context
from handlers.generation.checks import (
    chat_messages,
    check_prompt_chars,
    check_sequences,
    message_texts,
    remaining_context,
    sampling_params,
)
from handlers.generation.logprobs import MIN_LOGPROB
from handlers.generation.prepared_request import PreparedRequest, generating
from handlers.generation.scoring import score
from handlers.protocols import Engine
from handlers.schemas.parsing import parse
from handlers.schemas.requests import CompareRequest
from runtime.errors import ServiceError
from runtime.types import Job, Message, Token, TokenUsage


@dataclass(slots=True)
class _Variant:
    """One variant: its settings, its answer and its tokens."""

    settings: CompareRequest
    answer: dict[str, Any]
    tokens: list[Token] = field(default_factory=list)  # with log-probabilities, if they are to be scored

    @property
    def model(self) -> str:
        """The model's id."""
        return str(self.answer["model"])


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the whole comparison; fields as in ``CompareRequest`` and ``CompareResponse``.

    A variant that fails has its error in its answer and does not fail the others.

    Raises:
        InvalidRequest: a field is wrong, or a limit is exceeded.
    """
    answer: dict[str, Any] = {}
    async with aclosing(stream(payload, ctx)) as events:
        async for event in events:
            answer = event
    return answer


def stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """Yield all variants' text as it is generated, then the whole comparison (``CompareChunk``).

    Raises:
        InvalidRequest: a field is wrong, or a limit is exceeded; raised by the call itself.
    """
    request = parse(CompareRequest, payload)
    check_sequences(len(request.variants), 1, ctx, "variants", "variants")
    messages = chat_messages(request.messages or ())
    texts = [request.prompt] if request.prompt is not None else message_texts(messages)
    check_prompt_chars(texts, ctx, _field(request))
    return _events(_variants(request, ctx), messages, ctx)


def _field(request: CompareRequest) -> str:
    return "messages" if request.prompt is None else "prompt"


def _variants(request: CompareRequest, ctx: Context) -> list[_Variant]:
    default = ctx.models.status()[0].id  # the same for all variants, even if the default is switched meanwhile
    variants = []
    for index, variant in enumerate(request.variants):
        settings = request.model_copy(update=variant.model_dump(exclude_none=True, exclude={"label"}))
        model = settings.model or default
        answer = {
            "index": index,
            "label": variant.label or model,
            "model": model,
            "text": "",
            "finish_reason": None,
            "prompt_tokens": None,
            "completion_tokens": None,
            "seconds": None,
            "time_to_first_token_seconds": None,
            "tokens_per_second": None,
            "memory_bytes": None,
            "mean_logprobs": {},
            "error": None,
        }
        variants.append(_Variant(settings, answer))
    return variants


async def _events(
    variants: Sequence[_Variant], messages: tuple[Message, ...], ctx: Context
) -> AsyncGenerator[dict[str, Any], None]:
    events: asyncio.Queue[dict[str, Any] | asyncio.Task[_Variant]] = asyncio.Queue()
    usages: list[TokenUsage] = []
    variant_ctx = replace(ctx, observe=usages.append)
    tasks = [asyncio.create_task(_run(variant, messages, variant_ctx, events.put_nowait)) for variant in variants]
    for task in tasks:
        task.add_done_callback(events.put_nowait)
    try:
        unfinished = len(tasks)
        while unfinished:
            event = await events.get()
            if isinstance(event, dict):
                yield event
            else:
                unfinished -= 1
                variant = event.result()
                yield {"index": variant.answer["index"], "answer": variant.answer}
        scored = variants[0].settings.score
        scores = await _mean_logprobs(variants, messages, ctx) if scored else [{} for _ in variants]
        answers = [v.answer | {"mean_logprobs": by_model} for v, by_model in zip(variants, scores, strict=True)]
        yield {"object": "comparison", "answers": answers}
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        ctx.observe(sum(usages, TokenUsage()))


async def _run(
    variant: _Variant, messages: tuple[Message, ...], ctx: Context, put: Callable[[dict[str, Any]], None]
) -> _Variant:
    """Generate one variant's answer and pass its pieces to ``put``; a ``ServiceError`` goes into the answer."""
    settings, answer = variant.settings, variant.answer
    try:
        async with ctx.models.lease(variant.model) as engine:
            ids = await _prompt(settings, messages, engine, ctx)
            params = sampling_params(
                settings,
                max_new_tokens=min(
                    settings.max_new_tokens, remaining_context(len(ids), engine.info.context_length, _field(settings))
                ),
                n=1,
                logprobs=0 if settings.score else None,
                stop=engine.chat_stops if messages else (),
            )
            async with generating(
                PreparedRequest(engine, (Job(ids, params, ctx.background, _field(settings)),)), ctx
            ) as (
                collected,
                tokens,
            ):
                async for token in tokens:
                    if token.text or token.finish_reason:
                        put(
                            {
                                "index": answer["index"],
                                "text": token.text,
                                "finish_reason": token.finish_reason,
                            }
                        )
            seconds = ctx.clock.monotonic() - collected.started
            variant.tokens = collected.take(0)
            answer |= {
                "text": collected.texts[0],
                "finish_reason": collected.reasons[0],
                "prompt_tokens": len(ids),
                "completion_tokens": collected.completion_tokens,
                "seconds": seconds,
                "time_to_first_token_seconds": (collected.first or collected.started) - collected.started,
                "tokens_per_second": collected.completion_tokens / seconds if seconds else None,
                "memory_bytes": next((s.memory_bytes for s in ctx.models.status() if s.id == variant.model), None),
            }
    except ServiceError as error:
        answer["error"] = {"code": error.code, "message": error.message}
    return variant


async def _prompt(
    request: CompareRequest, messages: tuple[Message, ...], engine: Engine, ctx: Context
) -> tuple[int, ...]:
    if request.prompt is None:
        return await engine.encode_chat(messages, background=ctx.background)
    return await engine.encode(request.prompt, background=ctx.background)


async def _mean_logprobs(
    variants: Sequence[_Variant], messages: tuple[Message, ...], ctx: Context
) -> list[dict[str, float | None]]:
    """Return the mean log-probability of each answer under each model.

    Under the answer's own model it is the mean over the tokens generated. The other models score the answer's text one
    after the other, loaded models first; a model whose variants have all failed is left out.
    """
    scores: list[dict[str, float | None]] = [dict.fromkeys(v.model for v in variants) for _ in variants]
    for variant, by_model in zip(variants, scores, strict=True):
        ended = variant.answer["finish_reason"] == "stop"  # its last token ended it and is not part of the text
        tokens = variant.tokens[:-1] if ended else variant.tokens
        by_model[variant.model] = _mean(tokens) if variant.answer["text"] else None
    answered = dict.fromkeys(variant.model for variant in variants if variant.answer["error"] is None)
    loaded = {status.id for status in ctx.models.status() if status.state == "ready"}
    for model in sorted(answered, key=lambda model: model not in loaded):
        others = [i for i, variant in enumerate(variants) if variant.model != model and variant.answer["text"]]
        if not others:
            continue
        try:
            async with ctx.models.lease(model) as engine:
                prompt = await _prompt(variants[0].settings, messages, engine, ctx)
                for i in others:
                    scores[i][model] = await _score(variants[i].answer["text"], prompt, engine, ctx)
        except ServiceError:
            continue
    return scores


async def _score(text: str, prompt: tuple[int, ...], engine: Engine, ctx: Context) -> float | None:
    try:
        ids = await engine.encode_plain(text, background=ctx.background)
        return _mean(await score(engine, prompt, ids, background=ctx.background))
    except ServiceError:  # it exceeds the context, or this tokenizer cannot encode it as plain text
        return None


def _mean(tokens: Sequence[Token]) -> float | None:
    values = [max(token.logprob, MIN_LOGPROB) for token in tokens if token.logprob is not None]
    return sum(values) / len(values) if values else None
