"""Runs a request of another API as a chat completion, and translates the answer back."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from handlers.generation.translated_errors import renamed
from runtime.errors import ServiceError

Event = dict[str, Any]
Chunk = Mapping[str, Any]


class AnswerBuilder(Protocol):
    """Builds an answer of another API, and its events, from the parts of a chat completion."""

    def start(self) -> list[Event]:
        """Return the first events."""
        ...

    def add(self, choice: Chunk) -> list[Event]:
        """Add a choice, whole or a chunk's, and return its events."""
        ...

    def finish(self, last: Chunk) -> list[Event]:
        """End the answer with the last chunk, or a whole completion, which has the usage; return the last events."""
        ...

    def failed(self, error: ServiceError) -> list[Event]:
        """Return the events of an answer that an error ends; the error itself is sent behind them."""
        ...


def streamed(payload: Mapping[str, Any], *, usage_at_start: bool = False) -> dict[str, Any]:
    """Return a chat completion's payload with what ``translated`` needs.

    Args:
        payload: the payload.
        usage_at_start: whether the builder of the answer needs the usage, too, which every chunk has then.
    """
    return {**payload, "stream_options": {"include_usage": True, "continuous_usage_stats": usage_at_start}}


def call_arguments(text: str) -> dict[str, Any]:
    """Return the arguments of a tool's call, whose JSON text may be cut off; then they are empty."""
    try:
        value = json.loads(text)
    except ValueError:
        value = {}
    return value if isinstance(value, dict) else {}


async def translated(
    chunks: AsyncGenerator[dict[str, Any], None],
    build: Callable[[Chunk], AnswerBuilder],
    fields: Sequence[tuple[str, str]],
) -> AsyncGenerator[Event, None]:
    """Yield the events of an answer.

    Args:
        chunks: the chat completion, of a payload from ``streamed``.
        build: returns a builder, given the first chunk.
        fields: the names of fields in errors, see ``renaming``.

    Raises:
        ServiceError: errors of the chat completion.
    """
    builder: AnswerBuilder | None = None
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                if builder is None:
                    builder = build(chunk)
                    for event in builder.start():
                        yield event
                for choice in chunk["choices"]:
                    for event in builder.add(choice):
                        yield event
                if not chunk["choices"]:  # the last chunk, which has the usage
                    for event in builder.finish(chunk):
                        yield event
        except ServiceError as error:
            failure = renamed(error, fields)
            for event in builder.failed(failure) if builder is not None else ():
                yield event
            raise failure from None
