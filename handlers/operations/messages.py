"""``messages`` and ``count_tokens``: Anthropic's Messages API, as a translation to and from a chat completion."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from handlers.context import Context
from handlers.generation.messages_input import FIELDS, chat_payload
from handlers.generation.messages_output import MessageBuilder
from handlers.generation.translated_chat import streamed, translated
from handlers.generation.translated_errors import renaming
from handlers.operations import chat
from handlers.schemas.messages_api import CountTokensRequest, MessagesRequest
from handlers.schemas.parsing import parse, parse_stream


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return a whole message; fields as in ``MessagesRequest`` and ``MessageResponse``.

    Raises:
        InvalidRequest: a field is wrong, or a limit is exceeded.
        ServiceError: other errors of the operation ``chat``.
    """
    request = parse(MessagesRequest, payload)
    with renaming(FIELDS):
        answer = await chat.handle(chat_payload(request, payload), ctx)
    builder = MessageBuilder(request, answer)
    builder.add(answer["choices"][0])
    builder.finish(answer)
    return builder.message


def stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the events of a message.

    Raises:
        InvalidRequest: a field is wrong, or a limit is exceeded.
        ServiceError: other errors of the operation ``chat``.
    """
    request = parse_stream(MessagesRequest, payload)
    chunks = chat.stream(streamed(chat_payload(request, payload), usage_at_start=True), ctx)
    return translated(chunks, lambda chunk: MessageBuilder(request, chunk), FIELDS)


async def count(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the number of tokens of a conversation as the model's chat template renders it.

    Raises:
        InvalidRequest: a field is wrong, a limit is exceeded, or the template refuses the messages.
        ServiceError: errors of ``Models.lease``.
    """
    request = parse(CountTokensRequest, payload)
    with renaming(FIELDS):
        return await chat.count(chat_payload(request, payload), ctx)
