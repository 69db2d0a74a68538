"""JSON from strangers."""

from __future__ import annotations

import pytest

from runtime.errors import InvalidRequest
from runtime.strict_json import loads


def test_good_json_passes() -> None:
    """Bytes or text, any JSON value."""
    assert loads(b'{"a": [1, 2.5, null, "\xc3\xbc"]}') == {"a": [1, 2.5, None, "ü"]}
    assert loads("3") == 3


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not JSON"),
        (b"{", "line 1"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "-Infinity"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"[" * 200_000, "too deep"),
        (b'{"a":' * 200_000, "too deep"),
        (b"1" * 10_000, "digits"),
        (b'"\x00"', "not JSON"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_bad_json_is_an_invalid_request(data: bytes, said: str) -> None:
    """Each fault is named; nothing else is ever raised."""
    with pytest.raises(InvalidRequest, match=said):
        loads(data)
