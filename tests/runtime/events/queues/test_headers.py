"""Headers of retries, of dead letters and of answers."""

from __future__ import annotations

import pytest

from runtime.errors import InternalError
from runtime.events.envelope import encode
from runtime.events.outcome import Ack, Reject
from runtime.events.queues.headers import (
    answer_headers,
    answer_id,
    dead_letter_headers,
    earlier_deliveries,
    encode_answer,
    retry_headers,
)


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
    assert earlier_deliveries(headers) == count


@pytest.mark.parametrize(
    ("headers", "default", "id"),
    [({}, "m", "m"), ({"warmstart-id": "h"}, "m", "h"), ({"Warmstart-Id": "two words"}, "m", ""), ({}, "x" * 257, "")],
)
def test_the_id_to_answer_under(headers: dict[str, str], default: str, id: str) -> None:
    """The header's, else the broker's; none that could not be an envelope's."""
    assert answer_id(headers, default) == id


def test_what_is_other_about_a_copy() -> None:
    """The count goes on, the reason is only on dead letters, and there is no empty id."""
    assert retry_headers("1", 2) == {"Warmstart-Id": "1", "Warmstart-Attempt": "2", "Warmstart-Reason": None}
    assert dead_letter_headers("1", 2, "why") == {
        "Warmstart-Id": "1",
        "Warmstart-Attempt": "2",
        "Warmstart-Reason": "why",
    }
    assert retry_headers("", 1)["Warmstart-Id"] is None
    assert dead_letter_headers("", 1, "why")["Warmstart-Id"] is None
    assert answer_headers("1", "chunk", 2) == {"Warmstart-Id": "1", "Warmstart-Kind": "chunk", "Warmstart-Attempt": "2"}


def test_the_answer_is_what_http_sends() -> None:
    """Byte for byte; an error in OpenAI's shape."""
    error = InternalError("it failed")
    assert encode_answer(Ack({"text": "H\u00e9"})) == ("result", b'{"text": "H\\u00e9"}')
    assert encode_answer(Reject(error)) == ("error", encode(error.openai()))
