"""A chat completion as the answer of another API."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from handlers.generation.translated_chat import Event, streamed, translated
from runtime.errors import InvalidRequest, ServiceError

CHUNKS: list[dict[str, Any]] = [{"choices": [1, 2]}, {"choices": [3]}, {"choices": [], "usage": {"n": 3}}]


class Builder:
    """Tells what is called."""

    def __init__(self, chunk: Any) -> None:
        self._first = chunk["choices"]

    def start(self) -> list[Event]:
        return [{"start": self._first}]

    def add(self, choice: Any) -> list[Event]:
        return [{"add": choice}]

    def finish(self, last: Any) -> list[Event]:
        return [{"finish": last["usage"]}]

    def failed(self, error: ServiceError) -> list[Event]:
        return [{"failed": error.message}]


class Chat:
    """A stream of chunks that may fail, and tells when it is closed."""

    def __init__(self, chunks: list[dict[str, Any]], error: ServiceError | None = None) -> None:
        self.closed = False
        self._chunks, self._error = chunks, error

    async def stream(self) -> AsyncGenerator[dict[str, Any], None]:
        try:
            for chunk in self._chunks:
                yield chunk
            if self._error is not None:
                raise self._error
        finally:
            self.closed = True


def test_the_usage_is_asked_for() -> None:
    """The last chunk has it, and every chunk if a builder needs it earlier; the rest of the payload stays."""
    for early in (False, True):
        assert streamed({"messages": [], "stream_options": None}, usage_at_start=early) == {
            "messages": [],
            "stream_options": {"include_usage": True, "continuous_usage_stats": early},
        }


async def test_events_in_order() -> None:
    """The first chunk begins the answer, choices add to it, the usage ends it."""
    found = [event async for event in translated(Chat(CHUNKS).stream(), Builder, ())]
    assert found == [{"start": [1, 2]}, {"add": 1}, {"add": 2}, {"add": 3}, {"finish": {"n": 3}}]


@pytest.mark.parametrize(("chunks", "events"), [(0, []), (1, [{"failed": "max_output_tokens: too many"}])])
async def test_errors(chunks: int, events: list[Event]) -> None:
    """An error names the client's field; an answer that has begun first gets the event of its failure, as well."""
    error = InvalidRequest("max_tokens: too many", param="max_tokens")
    found: list[Event] = []

    answer = translated(Chat(CHUNKS[:chunks], error).stream(), Builder, (("max_tokens", "max_output_tokens"),))

    async def read() -> None:
        while True:
            found.append(await anext(answer))

    with pytest.raises(InvalidRequest, match="max_output_tokens: too many") as caught:
        await read()
    assert caught.value.param == "max_output_tokens"
    assert [event for event in found if "failed" in event] == events


async def test_leaving_closes_the_chat() -> None:
    """So that its generation stops at once."""
    chat = Chat(CHUNKS)
    events = translated(chat.stream(), Builder, ())
    await anext(events)
    await events.aclose()
    assert chat.closed
