"""The common implementation of ``generate`` and ``complete``, which differ in whether the response has the prompt."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from handlers.context import Context
from handlers.generation.answer import Generation, Question, answering
from handlers.generation.checks import (
    check_min_tokens,
    check_prompt_chars,
    check_sequences,
    encode_all,
    prompt_texts,
    remaining_context,
    sampling_params,
)
from handlers.generation.collect import Collected
from handlers.generation.logprobs import entries
from handlers.generation.prepared_request import PreparedRequest
from handlers.generation.structured import requested_grammar
from handlers.protocols import Engine
from handlers.schemas.requests import CompleteRequest, GenerateRequest
from runtime.errors import InvalidRequest
from runtime.types import Job

TextRequest = GenerateRequest | CompleteRequest

_UNLIMITED_NEW_TOKENS = 10_000_000  # new tokens if the request sets no number: the field's greatest value


def check(request: TextRequest, ctx: Context) -> None:
    """Run the checks that need no model.

    Raises:
        InvalidRequest: a limit is exceeded.
    """
    check_prompt_chars(request.prompt, ctx, "prompt")
    check_sequences(len(request.prompt), request.num_return_sequences, ctx, "num_return_sequences")


async def prepare(request: TextRequest, engine: Engine, ctx: Context) -> PreparedRequest:
    """Tokenize the prompts and check them against the model's limits.

    Raises:
        InvalidRequest: a limit is exceeded.
        ContextLengthExceeded: a prompt fills the model's context.
    """
    question = _question(request)
    jobs = []
    for ids in await encode_all(engine, request.prompt, ctx):
        limit = min(remaining_context(len(ids), engine.info.context_length, "prompt"), question.params.max_new_tokens)
        if question.max_length is not None:
            if len(ids) >= question.max_length:
                raise InvalidRequest(
                    f"max_length: {question.max_length} allows no new token after a prompt of {len(ids)} tokens; "
                    "raise it or give max_new_tokens",
                    param="max_length",
                )
            limit = min(limit, question.max_length - len(ids))
        check_min_tokens(request.min_new_tokens, limit, "min_new_tokens", "max_new_tokens, max_length")
        jobs.append(Job(ids, replace(question.params, max_new_tokens=limit), ctx.background))
    return PreparedRequest(engine, tuple(jobs))


def _question(request: TextRequest) -> Question:
    params = sampling_params(
        request,
        max_new_tokens=_UNLIMITED_NEW_TOKENS if request.max_new_tokens is None else request.max_new_tokens,
        n=request.num_return_sequences,
        min_new_tokens=request.min_new_tokens,
        logprobs=request.logprobs,
        grammar=requested_grammar(request),
    )
    bounded = request.max_new_tokens is None or "max_length" in request.model_fields_set
    return Question("text", request.prompt, params, request.max_length if bounded else None)


def _answering(request: TextRequest, ctx: Context) -> AbstractAsyncContextManager[Generation]:
    return answering(request, lambda engine: _question(request), lambda engine: prepare(request, engine, ctx), ctx)


async def answer(request: TextRequest, ctx: Context, *, echo: bool) -> dict[str, Any]:
    """Return the whole response (``handlers.schemas.responses.TextResponse``).

    Args:
        request: the validated request.
        ctx: the operation's context.
        echo: whether each text starts with its prompt.

    Raises:
        ServiceError: errors of ``check`` and ``answering``.
    """
    check(request, ctx)
    async with _answering(request, ctx) as response:
        prefixes = await _prefixes(request, response, ctx, echo)

        def render(collected: Collected) -> dict[str, Any]:
            sequences = [
                {"index": i, "text": prefixes[i] + text, "finish_reason": reason} | _logprobs(request, response, i)
                for i, (text, reason) in enumerate(zip(collected.texts, collected.reasons, strict=True))
            ]
            return {
                "text": sequences[0]["text"],
                "sequences": sequences,
                "model": response.engine.info.name,
                "usage": collected.usage.openai(),
            }

        return await response.render(render)


async def events(request: TextRequest, ctx: Context, *, echo: bool) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the response in pieces (``handlers.schemas.responses.TextChunk``), the last one with the usage.

    The texts of one index, joined, equal the text that ``answer`` returns. Arguments and errors as in ``answer``.
    """
    check(request, ctx)
    async with _answering(request, ctx) as response:
        prefixes = await _prefixes(request, response, ctx, echo)
        async for token in response.tokens:
            if token.text or token.finish_reason:
                text, prefixes[token.sequence] = prefixes[token.sequence] + token.text, ""
                piece = {"index": token.sequence, "text": text, "finish_reason": token.finish_reason}
                yield piece | _logprobs(request, response, token.sequence)
        yield {"model": response.engine.info.name, "usage": response.collected.usage.openai()}


async def _prefixes(request: TextRequest, response: Generation, ctx: Context, echo: bool) -> list[str]:
    """Return the text before each sequence's new text: its prompt with ``echo``, else nothing."""
    if not echo:
        return [""] * response.collected.sequences
    texts = await prompt_texts(response.engine, request.prompt, ctx)
    return [text for text in texts for _ in range(request.num_return_sequences)]


def _logprobs(request: TextRequest, response: Generation, index: int) -> dict[str, Any]:
    return {} if request.logprobs is None else {"logprobs": entries(response.engine, response.collected.take(index))}
