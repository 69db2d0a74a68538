"""``ollama_chat`` and ``ollama_generate``: Ollama's API, as a translation to and from completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from handlers.context import Context
from handlers.generation.ollama_input import (
    CHAT_FIELDS,
    PROMPT_FIELDS,
    chat_payload,
    completion_payload,
    prompt_chat_payload,
)
from handlers.generation.ollama_output import AnswerLines
from handlers.generation.translated_chat import streamed, translated
from handlers.generation.translated_errors import renaming
from handlers.operations import chat, completions
from handlers.schemas.ollama import OllamaChatRequest, OllamaGenerateRequest, OllamaGeneration, unloads
from handlers.schemas.parsing import parse, parse_stream
from runtime.errors import InsufficientScope
from runtime.types import ModelInfo

_UNLOAD = "unload_model"


@dataclass(frozen=True, slots=True)
class _Work:
    """What a request asks for.

    Args:
        lines: builds the answer.
        payload: the payload of the operation below; None for a request without a prompt.
        raw: whether that operation is ``completions``, not ``chat``.
        fields: the names of fields in its errors.
        done: what was done with the model of a request without a prompt.
    """

    lines: AnswerLines
    payload: dict[str, Any] | None
    raw: bool = False
    fields: Sequence[tuple[str, str]] = ()
    done: str = ""

    async def answer(self, ctx: Context) -> dict[str, Any]:
        """Return the whole answer."""
        if self.payload is None:
            return self.lines.without_text(self.done)
        with renaming(self.fields):
            answer = await (completions if self.raw else chat).handle(self.payload, ctx)
        self.lines.add(answer["choices"][0])
        return self.lines.whole(answer)


async def handle_chat(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the next message of a chat; fields as in ``OllamaChatRequest`` and ``OllamaChatResponse``.

    Raises:
        InvalidRequest: a field is wrong, or a limit is exceeded.
        ServiceError: other errors of the operation ``chat``.
    """
    return await (await _chat(parse(OllamaChatRequest, payload), ctx)).answer(ctx)


def stream_chat(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the lines of the next message; errors as of ``handle_chat``."""
    request = parse_stream(OllamaChatRequest, payload)
    return _stream(lambda: _chat(request, ctx), ctx)


async def handle_generate(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the answer to a prompt; fields as in ``OllamaGenerateRequest`` and ``OllamaGenerateResponse``.

    Raises:
        InvalidRequest: a field is wrong, or a limit is exceeded.
        ServiceError: other errors of the operations ``chat`` and ``completions``.
    """
    return await (await _generate(parse(OllamaGenerateRequest, payload), ctx)).answer(ctx)


def stream_generate(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the lines of the answer to a prompt; errors as of ``handle_generate``."""
    request = parse_stream(OllamaGenerateRequest, payload)
    return _stream(lambda: _generate(request, ctx), ctx)


async def _stream(prepare: Callable[[], Awaitable[_Work]], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the lines of an answer."""
    work = await prepare()
    if work.payload is None:
        yield work.lines.without_text(work.done)
        return
    chunks = (completions if work.raw else chat).stream(streamed(work.payload), ctx)
    async with aclosing(translated(chunks, lambda _: work.lines, work.fields)) as lines:
        async for line in lines:
            yield line


async def _chat(request: OllamaChatRequest, ctx: Context) -> _Work:
    if not request.messages:
        return await _without_prompt(request, ctx, is_chat=True)
    lines, info = await _opened(request, ctx, is_chat=True)
    return _Work(lines, chat_payload(request, dict(info.sampling_defaults)), fields=CHAT_FIELDS)


async def _generate(request: OllamaGenerateRequest, ctx: Context) -> _Work:
    if not request.prompt:
        return await _without_prompt(request, ctx, is_chat=False)
    lines, info = await _opened(request, ctx, is_chat=False)
    own = dict(info.sampling_defaults)
    if request.raw or (not info.chat_template and not request.system):
        return _Work(lines, completion_payload(request, own), raw=True, fields=PROMPT_FIELDS)
    return _Work(lines, prompt_chat_payload(request, own), fields=PROMPT_FIELDS)


async def _opened(request: OllamaGeneration, ctx: Context, *, is_chat: bool) -> tuple[AnswerLines, ModelInfo]:
    """Load the model if necessary, and return what builds the answer, and the model's metadata."""
    started = ctx.clock.monotonic()
    async with ctx.models.lease(request.model) as engine:
        info = engine.info
    lines = AnswerLines(
        request.model or info.name,
        chat=is_chat,
        now=ctx.clock.time,
        elapsed=lambda: ctx.clock.monotonic() - started,
        loaded=ctx.clock.monotonic() - started,
        alternatives=request.top_logprobs or 0,
    )
    return lines, info


async def _without_prompt(request: OllamaGeneration, ctx: Context, *, is_chat: bool) -> _Work:
    """Load the model, or with ``keep_alive`` 0 unload it."""
    if not unloads(request.keep_alive):
        return _Work((await _opened(request, ctx, is_chat=is_chat))[0], None, done="load")
    if not ctx.may_call(_UNLOAD):
        raise InsufficientScope(
            "keep_alive: unloading a model requires the scope 'admin', which this key does not have",
            param="keep_alive",
        )
    name = request.model or next(status.id for status in ctx.models.status() if status.default)
    await ctx.models.unload(name)
    lines = AnswerLines(name, chat=is_chat, now=ctx.clock.time, elapsed=ctx.clock.monotonic, loaded=0)
    return _Work(lines, None, done="unload")
