"""``responses``: OpenAI's Responses API, as a translation to and from a chat completion."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from handlers.context import Context
from handlers.generation.responses_input import FIELDS, chat_payload
from handlers.generation.responses_output import ResponseBuilder
from handlers.generation.stored_responses import continued, is_kept, save
from handlers.generation.translated_chat import streamed, translated
from handlers.generation.translated_errors import renaming
from handlers.operations import chat
from handlers.schemas.parsing import parse, parse_stream
from handlers.schemas.responses_api import ResponsesRequest


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return a whole response; fields as in ``ResponsesRequest`` and ``Response``.

    Raises:
        InvalidRequest: a field is wrong, or a limit is exceeded.
        ServiceError: other errors of the operation ``chat``.
    """
    request, whole = _read(payload, ctx)
    with renaming(FIELDS):
        answer = await chat.handle(chat_payload(request, whole), ctx)
    kept = is_kept(request, ctx)
    builder = ResponseBuilder(request, answer, ctx.clock.time, kept=kept)
    builder.add(answer["choices"][0])
    builder.finish(answer)
    if kept:
        save(whole, builder.response, ctx)
    return builder.response


async def stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the typed events of a response.

    Raises:
        InvalidRequest: a field is wrong, or a limit is exceeded.
        ServiceError: other errors of the operation ``chat``; once the stream has begun, after ``response.failed``.
    """
    request, whole = _read(payload, ctx, streams=True)
    chunks = chat.stream(streamed(chat_payload(request, whole)), ctx)
    kept = is_kept(request, ctx)
    events = translated(chunks, lambda chunk: ResponseBuilder(request, chunk, ctx.clock.time, kept=kept), FIELDS)
    async with aclosing(events):
        async for event in events:
            if kept and event["type"] in ("response.completed", "response.incomplete"):
                save(whole, event["response"], ctx)
            yield event


async def count(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the number of tokens of a response's input as the model's chat template renders it.

    Raises:
        InvalidRequest: a field is wrong, a limit is exceeded, or the template refuses the messages.
        ServiceError: errors of ``Models.lease``.
    """
    request, whole = _read(payload, ctx)
    with renaming(FIELDS):
        return {"object": "response.input_tokens", **await chat.count(chat_payload(request, whole), ctx)}


def _read(
    payload: dict[str, Any], ctx: Context, *, streams: bool = False
) -> tuple[ResponsesRequest, Mapping[str, Any]]:
    """Return the request and its payload, both with the conversation that it continues as the start of the input."""
    read = parse_stream if streams else parse
    request = read(ResponsesRequest, payload)
    whole = continued(request, payload, ctx)
    return (request if whole is payload else read(ResponsesRequest, whole)), whole
