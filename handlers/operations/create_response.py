"""``responses``: OpenAI's Responses API, as a translation to and from a chat completion. Nothing is kept."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from handlers.context import Context
from handlers.generation.responses_input import FIELDS, chat_payload
from handlers.generation.responses_output import ResponseBuilder
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
    request = parse(ResponsesRequest, payload)
    with renaming(FIELDS):
        answer = await chat.handle(chat_payload(request, payload), ctx)
    builder = ResponseBuilder(request, answer, ctx.clock.time)
    builder.add(answer["choices"][0])
    builder.finish(answer["usage"])
    return builder.response


def stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the typed events of a response.

    Raises:
        InvalidRequest: a field is wrong, or a limit is exceeded.
        ServiceError: other errors of the operation ``chat``; once the stream has begun, after ``response.failed``.
    """
    request = parse_stream(ResponsesRequest, payload)
    chunks = chat.stream(streamed(chat_payload(request, payload)), ctx)
    return translated(chunks, lambda chunk: ResponseBuilder(request, chunk, ctx.clock.time), FIELDS)


async def count(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the number of tokens of a response's input as the model's chat template renders it.

    Raises:
        InvalidRequest: a field is wrong, a limit is exceeded, or the template refuses the messages.
        ServiceError: errors of ``Models.lease``.
    """
    request = parse(ResponsesRequest, payload)
    with renaming(FIELDS):
        return {"object": "response.input_tokens", **await chat.count(chat_payload(request, payload), ctx)}
