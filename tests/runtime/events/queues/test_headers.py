"""Headers of messages that are sent again, buried and answered."""

from __future__ import annotations

import pytest

from runtime.errors import InternalError, InvalidRequest
from runtime.events.envelope import Envelope, encode
from runtime.events.outcome import Ack, Reject
from runtime.events.queues.base import QueueOptions
from runtime.events.queues.headers import about, again, answer, answer_to, dead, earlier, given_id


@pytest.mark.parametrize(
    ("headers", "count"),
    [
        ({}, 0),
        ({"Warmstart-Attempt": "3"}, 3),
        ({"warmstart-attempt": "3"}, 3),
        ({"Warmstart-Attempt": "-3"}, 0),
        ({"Warmstart-Attempt": "\u0663"}, 0),
        ({"Warmstart-Attempt": "9" * 10}, 0),
        ({"Warmstart-Attempt": "5", "Warmstart-Reason": "why"}, 0),
    ],
)
def test_earlier_deliveries(headers: dict[str, str], count: int) -> None:
    """Counted by whoever sent the message again; what is no count is none, and a dead letter begins anew."""
    assert earlier(headers) == count


@pytest.mark.parametrize(
    ("headers", "otherwise", "id"),
    [({}, "m", "m"), ({"warmstart-id": "h"}, "m", "h"), ({"Warmstart-Id": "two words"}, "m", ""), ({}, "x" * 257, "")],
)
def test_the_id_to_answer_under(headers: dict[str, str], otherwise: str, id: str) -> None:
    """The header's, else the broker's; none that could not be an envelope's."""
    assert given_id(headers, otherwise) == id


def test_what_is_other_about_a_copy() -> None:
    """The count goes on, the reason is only on dead letters, and there is no empty id."""
    assert again("1", 2) == {"Warmstart-Id": "1", "Warmstart-Attempt": "2", "Warmstart-Reason": None}
    assert dead("1", 2, "why") == {"Warmstart-Id": "1", "Warmstart-Attempt": "2", "Warmstart-Reason": "why"}
    assert again("", 1)["Warmstart-Id"] is None
    assert dead("", 1, "why")["Warmstart-Id"] is None
    assert about("1", "chunk", 2) == {"Warmstart-Id": "1", "Warmstart-Kind": "chunk", "Warmstart-Attempt": "2"}


def test_the_answer_is_what_http_sends() -> None:
    """Byte for byte; an error in OpenAI's shape."""
    error = InternalError("it failed")
    assert answer(Ack({"text": "H\u00e9"})) == ("result", b'{"text": "H\\u00e9"}')
    assert answer(Reject(error)) == ("error", encode(error.openai()))


@pytest.mark.parametrize(
    ("to", "allowed"),
    [(None, True), ("replies.me", True), ("other", False), ("replies.work", False), ("replies.work.wait", False)],
)
def test_answers_go_only_where_they_may(to: str | None, allowed: bool) -> None:
    """Never among our own queues, not even where the prefixes would allow it."""
    options = QueueOptions(
        "amqp://host", "replies.work", "g", "replies.results", "replies.dead", reply_prefixes=("replies.",)
    )
    envelope = Envelope("1", "s", "warmstart.x", "x", {}, reply_to=to)
    if allowed:
        assert answer_to(envelope, options) is envelope
    else:
        with pytest.raises(InvalidRequest, match="EVENTS_REPLY_PREFIXES"):
            answer_to(envelope, options)
