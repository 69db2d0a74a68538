"""runtime.strict_json: JSON from untrusted clients."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InvalidRequest
from runtime.strict_json import MAX_PARTS, loads
from tests.support.soak import soak


def test_good_json_passes() -> None:
    """Bytes or text, any JSON value."""
    assert loads(b'{"a": [1, 2.5, null, "\xc3\xbc"]}') == {"a": [1, 2.5, None, "ü"]}
    assert loads("3") == 3


@pytest.mark.parametrize("text", ['\ufeff["\ufeff"]', '\ufeff ["\ufeff"]'])
def test_a_byte_order_mark_is_skipped(text: str) -> None:
    """Before bytes and before text; inside a string it stays."""
    assert loads(text) == loads(text.encode()) == ["\ufeff"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"{", "line 1"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "-Infinity"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b"\xef\xbb\xbf" * 2 + b"{}", "not JSON"),
        (b"\xef\xbb\xbf", "not JSON"),
        (b"{}\xef\xbb\xbf", "not JSON"),
        (b"\xef\xbb\xbf" + b"[" * 15_000, "deeper than 100 levels"),
        (b"[" * 15_000, "deeper than 100 levels"),
        (b'{"a":' * 15_000, "deeper than 100 levels"),
        (b"[" * 15_000 + b'"', "deeper than 100 levels"),
        (b"[" * 200_000, "more than 20000 arrays"),
        (b"1" * 10_000, "digits"),
        (b'"\x00"', "not JSON"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_bad_json_is_an_invalid_request(data: bytes, message: str) -> None:
    """Each fault is named; nothing else is ever raised."""
    with pytest.raises(InvalidRequest, match=message):
        loads(data)


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("1", 0),
        ("[]", 1),
        ("[[], []]", 2),
        ('{"a": [{}]}', 3),
        ('["[[[["]', 1),
        (r'["\"[[[["]', 1),
        (r'["\\", [[]]]', 3),
        (r'["\\\"[[", [[]]]', 3),
        (r'["\n\"[[", "\u005b", [[]]]', 3),
        (r'{"[": "]", "{\"": [[]]}', 3),
    ],
)
def test_depth(text: str, levels: int) -> None:
    """Brackets in strings do not count, however quotes and backslashes are escaped."""
    assert loads(text, levels) == json.loads(text)
    if levels:
        with pytest.raises(InvalidRequest, match=f"deeper than {levels - 1} levels"):
            loads(text, levels - 1)


@pytest.mark.parametrize("limit", [4, 32, 500])
def test_the_limit(limit: int) -> None:
    """As deep as allowed is decoded, one level more is not; wide is not deep."""
    assert loads(b"[" * limit + b"]" * limit, limit) is not None
    assert loads(b"[" + b"[]," * 9_000 + b"{}]", limit) is not None
    with pytest.raises(InvalidRequest, match=f"{limit} levels"):
        loads("[" * (limit + 1) + "]" * (limit + 1), limit)


@pytest.mark.parametrize(("item", "limit"), [(b"0", MAX_PARTS), (b"{}", MAX_PARTS // 2), (b'",[\\",{"', MAX_PARTS)])
def test_how_many_parts(item: bytes, limit: int) -> None:
    """As many as allowed are decoded, one more is refused; brackets and commas in strings do not count."""
    assert len(loads(b"[" + b",".join([item] * limit) + b"]")) == limit
    with pytest.raises(InvalidRequest, match=f"more than {MAX_PARTS} arrays, objects and commas"):
        loads(b"[" + b",".join([item] * (limit + 1)) + b"]")


def test_a_lone_surrogate_is_not_utf_8() -> None:
    """Text that could not have come as bytes is still only an invalid request or a value."""
    assert loads('"\ud800"') == "\ud800"


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text('[]{}"\\a'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}"\\a'), inner, max_size=3),
    max_leaves=12,
)


def depth_of(value: Any) -> int:
    """The depth of a decoded value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@settings(max_examples=soak(1_000))
@given(VALUES, st.booleans(), st.integers(0, 6))
def test_any_value(value: Any, ascii_only: bool, limit: int) -> None:
    """Every JSON value comes back as it was, unless it is too deep, which is counted right."""
    text = json.dumps(value, ensure_ascii=ascii_only)
    if depth_of(value) > limit:
        with pytest.raises(InvalidRequest, match="levels"):
            loads(text.encode(), limit)
    else:
        assert loads(text.encode(), limit) == json.loads(text)


PIECES = st.text('[]{}",:\\1eé ', max_size=40)


@settings(max_examples=soak(10_000))
@given(PIECES.map(str.encode) | st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    """Whatever comes is decoded as Python's own decoder does it, or is an InvalidRequest."""
    try:
        found = loads(data)
    except InvalidRequest:
        return
    assert found == json.loads(data)
