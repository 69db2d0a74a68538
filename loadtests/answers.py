"""Parses an answer, whole or streamed, into one measurement. It does not need locust, so tests use it too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from loadtests.load.answer import json_object
from loadtests.load.http_answer import BadAnswer


class RecordedAnswer(NamedTuple):
    """One complete answer. Times are ``time.perf_counter`` seconds."""

    began: float
    """The time at which the request was sent."""
    first: float | None
    """Seconds from ``began`` to the first text; None if it was not streamed or has no text."""
    seconds: float
    """Seconds from ``began`` to the end."""
    prompt_tokens: int
    completion_tokens: int
    text: str

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second from the caller's point of view, with the time to the first token."""
        return self.completion_tokens / self.seconds

    @property
    def inter_token_seconds(self) -> float | None:
        """Mean seconds between tokens after the first; None if unknown."""
        if self.first is None or self.completion_tokens < 2:
            return None
        return (self.seconds - self.first) / (self.completion_tokens - 1)


def sse_events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the JSON events of a stream of server-sent events that ends with ``[DONE]``, as OpenAI's do.

    Raises:
        BadAnswer: an event is an error or not a JSON object, or ``[DONE]`` is missing.
    """
    for line in lines:
        if not line.startswith(b"data:"):
            continue  # blank lines end events; comments keep connections open
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        event = json_object(data)
        if "error" in event:
            raise BadAnswer(f"error event: {event['error']}")
        yield event
    raise BadAnswer("the stream ended without [DONE]")


def read_stream(lines: Iterable[bytes], began: float, clock: Callable[[], float] = time.perf_counter) -> RecordedAnswer:
    """Read the stream of a text or chat operation to its end.

    Args:
        lines: the body's lines, each passed on as soon as it arrives.
        began: the time at which the request was sent, on ``clock``.
        clock: returns seconds.

    Raises:
        BadAnswer: an event is not valid (see ``sse_events``), or finish reason, usage or tokens are missing.
    """
    first = usage = reason = None
    pieces: list[str] = []
    for event in sse_events(lines):
        text, finished = _piece(event)
        if text and first is None:
            first = clock() - began
        pieces.append(text)
        reason = finished or reason
        usage = event.get("usage") or usage
    if reason is None:
        raise BadAnswer("the stream has no finish_reason")
    return _answer(began, first, clock() - began, usage, "".join(pieces))


def read_whole(body: bytes, began: float, ended: float) -> RecordedAnswer:
    """Parse an unstreamed answer of a text or chat operation.

    Raises:
        BadAnswer: the body is not a complete answer.
    """
    answer = json_object(body)
    try:
        parts = answer["choices"] if "choices" in answer else answer["sequences"]
        texts = [part["message"]["content"] if "message" in part else part["text"] for part in parts]
        if not all(part["finish_reason"] in ("stop", "length") for part in parts):
            raise BadAnswer("a finish_reason is missing")
        return _answer(began, None, ended - began, answer["usage"], "".join(texts))
    except (KeyError, TypeError) as error:
        raise BadAnswer(f"unexpected shape ({error!r}): {body[:200]!r}") from None


def _piece(event: dict[str, Any]) -> tuple[str, str | None]:
    """Return (text, finish reason) of a chat chunk or a text event."""
    try:
        if "choices" not in event:
            return event.get("text") or "", event.get("finish_reason")
        choices = event["choices"]
        reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices), reasons[0] if reasons else None
    except (KeyError, TypeError, AttributeError) as error:
        raise BadAnswer(f"unexpected event ({error!r}): {event}") from None


def _answer(began: float, first: float | None, seconds: float, usage: Any, text: str) -> RecordedAnswer:
    try:
        read, written = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    except (KeyError, TypeError, ValueError):
        raise BadAnswer(f"no usage: {usage!r}") from None
    if written < 1:
        raise BadAnswer("not one token was generated")
    return RecordedAnswer(began, first, seconds, read, written, text)
