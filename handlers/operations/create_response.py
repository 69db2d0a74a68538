"""``responses``: OpenAI's Responses API, as a translation to and from a chat completion. Nothing is kept."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from handlers.context import Context
from handlers.generation.responses_input import FIELDS, chat_payload
from handlers.generation.responses_output import ResponseBuilder
from handlers.generation.translated_errors import renaming
from handlers.operations import chat
from handlers.schemas.parsing import parse, parse_stream
from handlers.schemas.responses_api import ResponsesRequest
from runtime.errors import ServiceError


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return a whole response; fields as in ``ResponsesRequest`` and ``Response``.

    Raises:
        InvalidRequest: a field is wrong, or a limit is exceeded.
        ServiceError: other errors of the operation ``chat``.
    """
    request = parse(ResponsesRequest, payload)
    with renaming(FIELDS):
        answer = await chat.handle(chat_payload(request, payload), ctx)
    builder = ResponseBuilder(request, answer)
    builder.add(answer["choices"][0])
    builder.finish(answer["usage"], ctx.clock.time())
    return builder.response


async def stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the typed events of a response.

    Raises:
        InvalidRequest: a field is wrong, or a limit is exceeded.
        ServiceError: other errors of the operation ``chat``; once the stream has begun, after ``response.failed``.
    """
    request = parse_stream(ResponsesRequest, payload)
    builder: ResponseBuilder | None = None
    asked = chat_payload(request, payload) | {"stream_options": {"include_usage": True}}
    with renaming(FIELDS):
        async with aclosing(chat.stream(asked, ctx)) as chunks:
            try:
                async for chunk in chunks:
                    if builder is None:
                        builder = ResponseBuilder(request, chunk)
                        for event in builder.start():
                            yield event
                    for choice in chunk["choices"]:
                        for event in builder.add(choice):
                            yield event
                    if not chunk["choices"]:  # the last chunk, which has the usage
                        for event in builder.finish(chunk["usage"], ctx.clock.time()):
                            yield event
            except ServiceError as error:
                if builder is not None:
                    yield builder.failed(error)
                raise
