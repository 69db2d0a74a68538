"""runtime.response_cache.codec: a whole answer as bytes and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.encoder_types import EncoderOutput
from runtime.response_cache.codec import CachedAnswer, CorruptEntry, pack, pack_output, unpack, unpack_output
from runtime.types import Token

KEY = "0f" * 32
_number = st.floats(max_value=0)
_token = st.builds(
    Token,
    sequence=st.integers(0, 3),
    id=st.integers(0, 300_000),
    text=st.text(max_size=4),
    finish_reason=st.sampled_from([None, None, None, "stop", "length"]),
    logprob=st.none() | _number,
    top_logprobs=st.lists(st.tuples(st.integers(0, 300_000), _number), max_size=3).map(tuple),
    cached_tokens=st.sampled_from([0, 0, 0, 17]),
    stop=st.sampled_from([None, None, None, "x"]),
)


@given(st.lists(_token, max_size=30), st.floats(0, 1e9), st.floats(0, 1e5), st.integers(0, 10**7))
def test_round_trip(tokens: list[Token], created: float, seconds: float, prompt_tokens: int) -> None:
    """Whatever the tokens are, all their fields come back, to the last bit of a number."""
    answer = CachedAnswer(created, seconds, prompt_tokens, tuple(tokens))
    assert unpack(KEY, pack(KEY, answer)) == answer


def test_size() -> None:
    """A plain answer takes little more than its texts and ids."""
    tokens = tuple(Token(0, 1000 + place, " word", "stop" if place == 63 else None) for place in range(64))
    assert len(pack(KEY, CachedAnswer(1.5, 0.5, 9, tokens))) < 64 * 15 + 250


def test_damage() -> None:
    """Any other byte, a missing or an added one, or another key, is noticed."""
    value = pack(KEY, CachedAnswer(1.5, 0.5, 9, (Token(0, 1, "a", "stop"),)))
    damaged = [value[:-1], value + b" ", value[1:], b"", b"\0" * 16]
    damaged += [value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :] for place in range(len(value))]
    for other in damaged:
        with pytest.raises(CorruptEntry):
            unpack(KEY, other)
    with pytest.raises(CorruptEntry):
        unpack("1f" * 32, value)


def test_output_of_an_encoder() -> None:
    """The same numbers come back; changed bytes and another key are found out."""
    output = EncoderOutput(7, np.array([1.5, -0.1], np.float32))
    value = pack_output("ab", output, 12.5)
    found, created = unpack_output("ab", value)
    assert (found.tokens, found.values.tolist(), created) == (7, output.values.tolist(), 12.5)
    for key, damaged in (("ac", value), ("ab", value[:-1] + b"x"), ("ab", b"")):
        with pytest.raises(CorruptEntry):
            unpack_output(key, damaged)
