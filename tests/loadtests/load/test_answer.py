from __future__ import annotations

import json

import pytest

from loadtests.load.answer import Streamed, read_complete, read_cut, read_streamed
from loadtests.load.http_answer import BadAnswer
from tests.loadtests.load.events import ANSWER, BODY, USAGE, chunk, line


@pytest.mark.parametrize("cut", [1, 5, 64, 10_000])
def test_events_are_read_however_they_are_cut(cut: int) -> None:
    """Characters of several bytes too; an event's time is when its end came, and tokens are the usage's."""
    pieces = [(float(start), BODY[start : start + cut]) for start in range(0, len(BODY), cut)]
    answer = read_streamed(pieces, -1.0, 9_999.0)
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("It is Pâris", 84, 4)
    ends = [len(b"".join(line(event) for event in ANSWER[:count])) - 2 for count in (2, 3)]
    assert answer.times == tuple(float(end // cut * cut) for end in ends)
    assert answer.first == answer.times[0] + 1.0


def test_peers_may_leave_out_what_says_nothing() -> None:
    """No [DONE], no line end at the end, usage in the last chunk, comments, empty fields."""
    last = line(chunk(finish_reason="length") | {"usage": USAGE}).rstrip()
    body = b": ping\n\n" + line({"choices": [{"delta": None}], "error": None}) + line(chunk("a")) + last
    assert read_streamed([(1.0, body)], 0.0, 2.0) == Streamed(0.0, 2.0, (1.0,), 84, 4, "a", "length")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "finish_reason"),
        (line(chunk("a")) + line({"usage": USAGE}), "finish_reason"),
        (line(chunk("a", finish_reason="stop")), "usage"),
        (line(chunk("a", finish_reason="stop") | {"usage": {"completion_tokens": 0}}), "usage"),
        (line({"error": {"message": "planted"}}), "planted"),
        (line({"error": "planted"}), "planted"),
        (b"data: {\n", "not JSON"),
        (b"data: 1\n", "not a JSON object"),
    ],
)
def test_a_broken_stream_is_refused(body: bytes, message: str) -> None:
    """Errors and answers without an end, tokens or JSON count as failures."""
    with pytest.raises(BadAnswer, match=message):
        read_streamed([(0.0, body)], 0.0, 0.0)


def test_an_answer_that_straddles_an_edge_counts_for_its_part() -> None:
    """Its pieces say when its tokens came; an answer without text came at its end."""
    answer = Streamed(0.0, 5.0, (1.0, 2.0, 3.0, 4.0), 84, 8, "abcd")
    assert [answer.tokens_between(*edges) for edges in ((0, 9), (2, 4), (4.5, 9), (-3, 1))] == [8, 4, 0, 0]
    assert Streamed(0.0, 5.0, (), 84, 2, "").tokens_between(4, 6) == 2


@pytest.mark.parametrize(
    "events",
    [
        [{"choices": [{"text": "a"}]}, {"choices": [{"text": "", "finish_reason": "length"}], "usage": USAGE}],
        [{"text": "a", "index": 0}, {"text": "", "index": 0, "finish_reason": "length", "usage": USAGE}],
        [{"choices": [{"delta": {"reasoning_content": "a"}}]}, chunk(finish_reason="length") | {"usage": USAGE}],
        [
            {"choices": [{"delta": {"tool_calls": [{"function": {"name": "f", "arguments": "a"}}]}}]},
            chunk(finish_reason="length") | {"usage": USAGE},
        ],
    ],
)
def test_the_streams_of_all_operations_are_read(events: list[dict[str, object]]) -> None:
    """Completions, Warmstart's own texts, reasoning, and the arguments of calls."""
    pieces = [(float(number), line(event)) for number, event in enumerate(events)]
    assert read_streamed(pieces, 0.0, 9.0) == Streamed(0.0, 9.0, (0.0,), 84, 4, "a", "length")


def test_a_stream_that_the_client_left_counts_what_came() -> None:
    """A token per piece of text, and half an event is none."""
    assert read_cut([(1.0, BODY[:-60])], 0.0, 2.0) == Streamed(0.0, 2.0, (1.0, 1.0), 0, 2, "")
    with pytest.raises(BadAnswer, match="planted"):
        read_cut([(0.0, line({"error": "planted"}))], 0.0, 0.0)


def test_a_whole_answer_has_no_first_token() -> None:
    """A chat's, a completion's, Warmstart's sequences, an event's result; a score or an embedding has no tokens."""
    for body in (
        {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": USAGE},
        {"choices": [{"text": "a", "finish_reason": "stop"}], "usage": USAGE},
        {"sequences": [{"text": "a", "finish_reason": "stop"}], "usage": USAGE},
    ):
        assert read_complete(json.dumps(body).encode(), 0.0, 1.0) == Streamed(0.0, 1.0, (), 84, 4, "a", "stop")
    embedding = json.dumps({"data": [], "usage": {"prompt_tokens": 7}}).encode()
    assert read_complete(embedding, 0.0, 1.0, generates=False).prompt_tokens == 7
    for wrong in (embedding, b"[]", b"{}", b'{"error": {"message": "x"}}', b'{"usage": {"completion_tokens": 1}}'):
        with pytest.raises(BadAnswer):
            read_complete(wrong, 0.0, 1.0)
