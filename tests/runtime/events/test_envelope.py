"""The envelope's headers, its id, and the encoding of answers."""

from __future__ import annotations

import json

import pytest

from runtime.events.envelope import Envelope, encode, is_id, to_headers


def test_headers_of_an_envelope() -> None:
    """Members without a value have no header, and a deadline is written in milliseconds' precision."""
    bare = Envelope("1", "s", "warmstart.chat", "chat", {})
    assert to_headers(bare) == {"Warmstart-Id": "1", "Warmstart-Operation": "chat"}
    full = Envelope("1", "s", "warmstart.chat", "chat", {}, "00-a-b-01", 2, 1_700_000_000.25, "replies", True)
    assert to_headers(full) == {
        "Warmstart-Id": "1",
        "Warmstart-Operation": "chat",
        "traceparent": "00-a-b-01",
        "Warmstart-Deadline": "1700000000.250",
        "Warmstart-Reply-To": "replies",
        "Warmstart-Stream": "true",
    }


@pytest.mark.parametrize(
    ("text", "valid"),
    [("a", True), ("!~", True), ("x" * 256, True), ("", False), ("a b", False), ("\u00e9", False), ("x" * 257, False)],
)
def test_ids(text: str, valid: bool) -> None:
    """An id has 1 to 256 printable ASCII characters without blanks."""
    assert is_id(text) is valid


def test_answers_are_json() -> None:
    """An answer is encoded as ASCII JSON, with the members in their order."""
    assert encode({"b": "\u00e9", "a": 1}) == b'{"b": "\\u00e9", "a": 1}'
    assert json.loads(encode({"b": 1.5})) == {"b": 1.5}
