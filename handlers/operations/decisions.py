"""``decisions``: OpenAI's Decisions API. Nothing is generated: the labels of each question's options are scored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from handlers.context import Context
from handlers.generation.checks import (
    chat_messages,
    check_prompt_chars,
    check_sequences,
    message_texts,
    remaining_context,
)
from handlers.generation.decision_questions import answer, labels, options, plain_text, question_text
from handlers.generation.prepared_request import PreparedRequest, generating
from handlers.generation.responses_input import item_messages
from handlers.generation.translated_errors import renaming
from handlers.protocols import Engine
from handlers.schemas.decisions import DecisionsRequest
from handlers.schemas.messages import ChatMessage
from handlers.schemas.parsing import parse
from runtime.errors import InvalidRequest
from runtime.types import Job, Message, SamplingParams, TemplateOptions, TokenUsage

_FIELDS = ((r"messages\b.*", "input"),)
_NO_REASONING = TemplateOptions(arguments='{"enable_thinking": false}')


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the answers to all questions; fields as in ``DecisionsRequest`` and ``DecisionsResponse``.

    Raises:
        InvalidRequest: a field is wrong, a limit is exceeded, or the model cannot answer without reasoning.
        ServiceError: other errors of ``Models.lease``, ``Engine.stream`` and ``Context.reserve``.
    """
    request = parse(DecisionsRequest, payload)
    messages = _messages(request)
    questions = [question_text(question) for question in request.questions]
    check_prompt_chars([*message_texts(messages), *questions], ctx, "input")
    counts = [len(options(question)) for question in request.questions]
    check_sequences(sum(counts), 1, ctx, "questions", "questions")
    async with ctx.models.lease(request.model) as engine:
        with renaming(_FIELDS):
            jobs = await _jobs(messages, questions, counts, engine, ctx)
            logprobs = [[0.0] * count for count in counts]
            places = [(index, option) for index, count in enumerate(counts) for option in range(count)]
            async with generating(PreparedRequest(engine, jobs, alike=True), ctx) as (collected, tokens):
                async for token in tokens:
                    index, option = places[token.sequence]
                    logprobs[index][option] += token.logprob or 0.0
        return {
            "model": engine.info.name,
            "answers": [answer(*both) for both in zip(request.questions, logprobs, strict=True)],
            "usage": _usage(collected.usage),
        }


def _messages(request: DecisionsRequest) -> tuple[Message, ...]:
    if isinstance(request.input, str):
        return (Message("user", request.input),)
    return chat_messages(map(ChatMessage.model_validate, item_messages(request.input, plain_text)))


def _asked(messages: Sequence[Message], question: str) -> list[Message]:
    """Return the input with a question at its end, in the user's last message, since turns may have to alternate."""
    if messages[-1].role != "user":
        return [*messages, Message("user", question)]
    return [*messages[:-1], replace(messages[-1], content=f"{messages[-1].content}\n\n{question}")]


async def _jobs(
    messages: Sequence[Message], questions: Sequence[str], counts: Sequence[int], engine: Engine, ctx: Context
) -> tuple[Job, ...]:
    """Return a job for each question, whose continuations are the labels of its options."""
    form = engine.answer_format
    if form.reasoning == "open" and not form.switchable:
        raise InvalidRequest("model: the reasoning of this model cannot be turned off", param="model")
    template = _NO_REASONING if form.switchable else None
    jobs = list[Job]()
    for question, count in zip(questions, counts, strict=True):
        ids = await engine.encode_chat(_asked(messages, question), options=template, background=ctx.background)
        remaining_context(len(ids), engine.info.context_length, "input")
        texts = await _label_ids(count, engine, ctx)
        params = SamplingParams(max(map(len, texts)), temperature=0, logprobs=0, n=count)
        jobs.append(Job(ids, params, ctx.background, "input", texts))
    return tuple(jobs)


async def _label_ids(count: int, engine: Engine, ctx: Context) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of a question's labels at the start of an answer.

    Raises:
        InvalidRequest: the model's tokenizer gives two labels the same tokens.
    """
    start = "" if engine.info.chat_template else " "  # the plain template ends with a colon
    found = await asyncio.gather(
        *(engine.encode_plain(start + label, background=ctx.background) for label in labels(count))
    )
    if len(set(found)) < count:
        raise InvalidRequest("model: its tokenizer cannot tell the labels of the options apart", param="model")
    return tuple(found)


def _usage(usage: TokenUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
