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
from handlers.generation.checks import chat_messages, check_prompt_chars, check_sequences, room, sampling_params
from handlers.generation.logprobs import LEAST
from handlers.generation.plan import PreparedRequest, generating
from handlers.generation.scoring import score
from handlers.protocols import Engine
from handlers.schemas.parsing import parse
from handlers.schemas.requests import CompareRequest
from runtime.errors import ServiceError
from runtime.types import Job, Message, Token, TokenUsage


@dataclass(slots=True)
class _Side:
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
    messages = chat_messages((message.role, message.content) for message in request.messages or ())
    texts = [request.prompt] if request.prompt is not None else [message.content for message in messages]
    check_prompt_chars(texts, ctx, _field(request))
    return _events(_sides(request, ctx), messages, ctx)


def _field(request: CompareRequest) -> str:
    return "messages" if request.prompt is None else "prompt"


def _sides(request: CompareRequest, ctx: Context) -> list[_Side]:
    default = ctx.models.status()[0].id  # the same for all variants, even if the default is switched meanwhile
    sides = []
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
        sides.append(_Side(settings, answer))
    return sides


async def _events(
    sides: Sequence[_Side], messages: tuple[Message, ...], ctx: Context
) -> AsyncGenerator[dict[str, Any], None]:
    events: asyncio.Queue[dict[str, Any] | asyncio.Task[_Side]] = asyncio.Queue()
    usages: list[TokenUsage] = []
    apart = replace(ctx, observe=usages.append)
    tasks = [asyncio.create_task(_run(side, messages, apart, events.put_nowait)) for side in sides]
    for task in tasks:
        task.add_done_callback(events.put_nowait)
    try:
        left = len(tasks)
        while left:
            event = await events.get()
            if isinstance(event, dict):
                yield event
            else:
                left -= 1
                side = event.result()
                yield {"index": side.answer["index"], "answer": side.answer}
        means = await _means(sides, messages, ctx) if sides[0].settings.score else [{} for _ in sides]
        answers = [side.answer | {"mean_logprobs": mean} for side, mean in zip(sides, means, strict=True)]
        yield {"object": "comparison", "answers": answers}
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        ctx.observe(sum(usages, TokenUsage()))


async def _run(
    side: _Side, messages: tuple[Message, ...], ctx: Context, put: Callable[[dict[str, Any]], None]
) -> _Side:
    """Generate one variant's answer and pass its pieces to ``put``; a ``ServiceError`` goes into the answer."""
    settings, answer, now = side.settings, side.answer, ctx.clock.monotonic
    try:
        async with ctx.models.lease(side.model) as engine:
            ids = await _prompt(settings, messages, engine, ctx)
            params = sampling_params(
                settings,
                max_new_tokens=min(
                    settings.max_new_tokens, room(len(ids), engine.info.context_length, _field(settings))
                ),
                n=1,
                logprobs=0 if settings.score else None,
                stop=engine.chat_stops if messages else (),
            )
            begun, first = now(), 0.0
            async with generating(PreparedRequest(engine, (Job(ids, params, ctx.queued, _field(settings)),)), ctx) as (
                collected,
                tokens,
            ):
                async for token in tokens:
                    first = first or now()
                    if token.text or token.finish_reason:
                        put(
                            {
                                "index": answer["index"],
                                "text": token.text,
                                "finish_reason": token.finish_reason,
                            }
                        )
            seconds = now() - begun
            side.tokens = collected.take(0)
            answer |= {
                "text": collected.texts[0],
                "finish_reason": collected.reasons[0],
                "prompt_tokens": len(ids),
                "completion_tokens": collected.completion_tokens,
                "seconds": seconds,
                "time_to_first_token_seconds": first - begun,
                "tokens_per_second": collected.completion_tokens / seconds if seconds else None,
                "memory_bytes": next((s.memory_bytes for s in ctx.models.status() if s.id == side.model), None),
            }
    except ServiceError as error:
        answer["error"] = {"code": error.code, "message": error.message}
    return side


async def _prompt(
    request: CompareRequest, messages: tuple[Message, ...], engine: Engine, ctx: Context
) -> tuple[int, ...]:
    if request.prompt is None:
        return await engine.encode_chat(messages, queued=ctx.queued)
    return await engine.encode(request.prompt, queued=ctx.queued)


async def _means(sides: Sequence[_Side], messages: tuple[Message, ...], ctx: Context) -> list[dict[str, float | None]]:
    """Return the mean log-probability of each answer under each model.

    Under the answer's own model it is the mean over the tokens generated. The other models score the answer's text one
    after the other, loaded models first; a model whose variants have all failed is left out.
    """
    means: list[dict[str, float | None]] = [dict.fromkeys(side.model for side in sides) for _ in sides]
    for side, mean in zip(sides, means, strict=True):
        ended = side.answer["finish_reason"] == "stop"  # its last token ended it and is not part of the text
        mean[side.model] = _mean(side.tokens[:-1] if ended else side.tokens) if side.answer["text"] else None
    answered = dict.fromkeys(side.model for side in sides if side.answer["error"] is None)
    loaded = {status.id for status in ctx.models.status() if status.state == "ready"}
    for model in sorted(answered, key=lambda model: model not in loaded):
        others = [i for i, side in enumerate(sides) if side.model != model and side.answer["text"]]
        if not others:
            continue
        try:
            async with ctx.models.lease(model) as engine:
                prompt = await _prompt(sides[0].settings, messages, engine, ctx)
                for i in others:
                    means[i][model] = await _mean_of(sides[i].answer["text"], prompt, engine, ctx)
        except ServiceError:
            continue
    return means


async def _mean_of(text: str, prompt: tuple[int, ...], engine: Engine, ctx: Context) -> float | None:
    try:
        ids = await engine.encode_plain(text, queued=ctx.queued)
        return _mean(await score(engine, prompt, ids, queued=ctx.queued))
    except ServiceError:  # it exceeds the context, or this tokenizer cannot encode it as plain text
        return None


def _mean(tokens: Sequence[Token]) -> float | None:
    values = [max(token.logprob, LEAST) for token in tokens if token.logprob is not None]
    return sum(values) / len(values) if values else None
