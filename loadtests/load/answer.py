"""Parses the answers of generating operations, streamed or whole, of any OpenAI-compatible server.

While an answer arrives, its bytes are only split into chunks and timestamped; events are parsed after it has ended,
because the generator often runs on the cores of the server it measures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from loadtests.load.http_answer import BadAnswer, Piece


class Streamed(NamedTuple):
    """One complete streamed answer. Times are ``time.perf_counter`` seconds."""

    began: float
    """The time at which the request was sent."""
    ended: float
    times: tuple[float, ...]
    """The time at which each piece of text arrived, in order; a piece may hold several tokens."""
    prompt_tokens: int
    completion_tokens: int
    text: str
    reason: str = ""
    """The finish reason."""

    @property
    def first(self) -> float | None:
        """Seconds from the request to the first text; None if there was none."""
        return self.times[0] - self.began if self.times else None

    def tokens_between(self, start: float, end: float) -> float:
        """Return its tokens that arrived in ``[start, end)``, assuming that all pieces of text hold equally many."""
        times = self.times or (self.ended,)
        return self.completion_tokens * sum(start <= moment < end for moment in times) / len(times)


def read_streamed(pieces: Iterable[Piece], began: float, ended: float) -> Streamed:
    """Parse the events of a streamed answer of a chat, of a completion, or of ``/generate`` and ``/complete``.

    Servers may leave out ``[DONE]`` and empty fields. Reasoning and the arguments of tool calls are text, too.

    Args:
        pieces: (arrival time, bytes), split anywhere.
        began: the time at which the request was sent.
        ended: the time at which the answer's end arrived.

    Raises:
        BadAnswer: an event is an error or not JSON; finish reason, usage or tokens are missing.
    """
    texts: list[str] = []
    times: list[float] = []
    usage = reason = None
    for now, event in _events(pieces):
        if event.get("error"):
            raise BadAnswer(f"error event: {event['error']}")
        for choice in event.get("choices") or ([event] if "text" in event or "finish_reason" in event else ()):
            reason = choice.get("finish_reason") or reason
            if text := _text(choice):
                texts.append(text)
                times.append(now)
        usage = event.get("usage") or usage
    if reason is None:
        raise BadAnswer("the stream has no finish_reason")
    read, written = _tokens(usage, least=1)
    return Streamed(began, ended, tuple(times), read, written, "".join(texts), reason)


def read_cut(pieces: Iterable[Piece], began: float, ended: float) -> Streamed:
    """Parse the events of a stream that the client has left; each piece of text counts as one token.

    Raises:
        BadAnswer: an event is an error or not JSON.
    """
    times: list[float] = []
    for now, event in _events(pieces, cut=True):
        if event.get("error"):
            raise BadAnswer(f"error event: {event['error']}")
        if has_text(event):
            times.append(now)
    return Streamed(began, ended, tuple(times), 0, len(times), "", "")


def read_complete(body: bytes, began: float, ended: float, *, generates: bool = True) -> Streamed:
    """Parse an answer that came as a whole; it has no time of a first token.

    Args:
        body: the answer's JSON.
        began: the time at which the request was sent.
        ended: the time at which the answer's end arrived.
        generates: whether it must have generated tokens; scores and embeddings have none.

    Raises:
        BadAnswer: the body is not such an answer.
    """
    answer = json_object(body)
    if answer.get("error"):
        raise BadAnswer(f"error: {answer['error']}")
    read, written = _tokens(answer.get("usage"), least=int(generates))
    choices = answer.get("choices") or answer.get("sequences") or ([answer] if "text" in answer else ())
    if generates and not choices:
        raise BadAnswer(f"no choices: {body[:200]!r}")
    try:
        text = "".join(_text(choice) for choice in choices)
        reason = next((choice["finish_reason"] for choice in choices if choice.get("finish_reason")), "")
    except (TypeError, AttributeError) as error:
        raise BadAnswer(f"unexpected shape ({error!r}): {body[:200]!r}") from None
    return Streamed(began, ended, (), read, written, text, reason)


def has_text(event: dict[str, Any]) -> bool:
    """Return whether an event of a stream carries text."""
    return any(_text(choice) for choice in event.get("choices") or [event])


def json_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        BadAnswer: the data is something else.
    """
    try:
        value = json.loads(data)
    except ValueError:
        raise BadAnswer(f"not JSON: {data[:200]!r}") from None
    if not isinstance(value, dict):
        raise BadAnswer(f"not a JSON object: {data[:200]!r}")
    return value


def _text(choice: dict[str, Any]) -> str:
    """Return the text of a choice or of its delta, the arguments of its calls included."""
    message = choice.get("delta") or choice.get("message") or choice
    texts = [message.get(name) for name in ("reasoning_content", "reasoning", "content", "text")]
    texts += [(call.get("function") or {}).get("arguments") for call in message.get("tool_calls") or ()]
    return "".join(text for text in texts if isinstance(text, str))


def _tokens(usage: Any, least: int) -> tuple[int, int]:
    try:
        read, written = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    except (AttributeError, TypeError, ValueError):
        raise BadAnswer(f"no usage: {usage!r}") from None
    if written < least:
        raise BadAnswer(f"no usage, or not one token was generated: {usage!r}")
    return read, written


def _events(pieces: Iterable[Piece], cut: bool = False) -> Iterator[tuple[float, dict[str, Any]]]:
    rest, now = b"", 0.0
    for now, data in pieces:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if (event := _event(line)) is not None:
                yield now, event
    if not cut and (event := _event(rest)) is not None:
        yield now, event


def _event(line: bytes) -> dict[str, Any] | None:
    data = line[5:].strip() if line.startswith(b"data:") else b""
    if not data or data == b"[DONE]":
        return None
    return json_object(data)
