from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from loadtests.answers import RecordedAnswer, read_stream, read_whole, sse_events
from loadtests.load.http_answer import BadAnswer

USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
DONE = b"data: [DONE]\n"


def line(event: Any) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n"


def chunk(content: str | None = None, reason: str | None = None) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], "usage": None}


CHAT = [chunk(""), chunk("It is"), chunk(" Paris"), chunk(None, "stop"), {"choices": [], "usage": USAGE}]
TEXT = [
    {"index": 0, "text": "It is", "finish_reason": None},
    {"index": 0, "text": " Paris", "finish_reason": "length"},
    {"model": "m", "usage": USAGE},
]


def test_stream_events_are_read_in_order_without_comments_and_blank_lines() -> None:
    """Only data lines count, with or without the space; what comes after [DONE] is not read."""
    lines = [b": ping\n", b"\n", b'data:{"a":1}\r\n', b"event: x\n", b'data: {"b":2}\n', DONE, b"data: broken\n"]
    assert list(sse_events(lines)) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "without"),
        ([line(CHAT[0])], "without"),
        ([line({"error": {"message": "planted"}}), DONE], "planted"),
        ([b"data: {\n", DONE], "not JSON"),
        ([b"data: []\n", DONE], "not a JSON object"),
    ],
)
def test_a_broken_stream_is_refused(lines: list[bytes], message: str) -> None:
    """A cut stream, an error event and anything that is no JSON object are bad answers."""
    with pytest.raises(BadAnswer, match=message):
        list(sse_events(lines))


@pytest.mark.parametrize("events", [CHAT, TEXT], ids=["chat", "text"])
def test_a_stream_is_timed_from_the_request_to_its_first_text_and_its_end(events: list[dict[str, Any]]) -> None:
    """The role chunk is no token; tokens are those of the usage, not the number of events."""
    ticks = itertools.count(11.0, 4.0)  # the first text comes 1 s after the request, the end 4 s later
    answer = read_stream([line(event) for event in events] + [DONE], 10.0, lambda: next(ticks))
    assert answer == RecordedAnswer(10.0, 1.0, 5.0, 5, 3, "It is Paris")
    assert answer.tokens_per_second == 3 / 5
    assert answer.inter_token_seconds == 2.0


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (CHAT[:-1], "no usage"),
        ([CHAT[1], CHAT[-1]], "finish_reason"),
        ([{"choices": [{}]}], "unexpected event"),
        ([*CHAT[:-1], {"choices": [], "usage": USAGE | {"completion_tokens": 0}}], "not one token"),
    ],
)
def test_a_stream_of_another_shape_is_refused(events: list[dict[str, Any]], message: str) -> None:
    """No usage, no finish reason, a chunk without its fields, and no tokens are bad answers."""
    with pytest.raises(BadAnswer, match=message):
        read_stream([line(event) for event in events] + [DONE], 0.0)


def test_a_stream_without_text_has_no_first_token() -> None:
    """A model may end at once: no failure, and no time to first token either."""
    answer = read_stream([line(chunk(None, "stop")), line({"choices": [], "usage": USAGE}), DONE], 0.0)
    assert answer.first is None
    assert answer.inter_token_seconds is None


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": {"content": "It is Paris"}, "finish_reason": "stop"}], "usage": USAGE},
        {"text": "It is Paris", "sequences": [{"text": "It is Paris", "finish_reason": "stop"}], "usage": USAGE},
    ],
    ids=["chat", "text"],
)
def test_a_whole_answer_is_timed_and_counted(body: dict[str, Any]) -> None:
    """It has no first token, so it has no gaps between tokens."""
    answer = read_whole(json.dumps(body).encode(), 10.0, 16.0)
    assert answer == RecordedAnswer(10.0, None, 6.0, 5, 3, "It is Paris")
    assert answer.inter_token_seconds is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"choices": [{"text": "a", "finish_reason": "stop"}]}',
        b'{"choices": [{"text": "a", "finish_reason": null}], "usage": {}}',
        b'{"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {}}',
    ],
)
def test_a_whole_answer_of_another_shape_is_refused(body: bytes) -> None:
    """Whatever is missing, it is a bad answer and no other exception."""
    with pytest.raises(BadAnswer):
        read_whole(body, 0.0, 1.0)
