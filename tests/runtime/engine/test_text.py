"""Text from tokens: characters whole, stop strings never shown, nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.text import TextStream


def decode_bytes(ids: list[int]) -> str:
    """A byte-level vocabulary: an id is a byte."""
    return bytes(ids).decode("utf-8", "replace")


def stream(text: bytes, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    out = TextStream(decode_bytes, [], stop)
    pieces = []
    for byte in text:
        pieces.append(out.push(byte))
        if out.stopped:
            return pieces, out
    pieces.append(out.flush())
    return pieces, out


def test_a_character_of_several_tokens_comes_out_whole() -> None:
    """Half a character is held back until its last byte is there."""
    pieces, _ = stream("a€😀".encode())
    assert [piece for piece in pieces if piece] == ["a", "€", "😀"]


def test_an_unfinished_character_at_the_end_is_dropped() -> None:
    """Text cut inside a character ends before it, without a replacement mark."""
    pieces, _ = stream("ok€".encode()[:-1])
    assert "".join(pieces) == "ok"


@pytest.mark.parametrize(
    ("text", "stop", "shown", "stopped"),
    [
        ("one two three", ("two",), "one ", True),
        ("one two three", ("four",), "one two three", False),
        ("ababac", ("abac",), "ab", True),
        ("abab", ("abac",), "abab", False),
        ("xxEND", ("END", "xEN"), "x", True),
        ("x\n", ("\n\n",), "x\n", False),
        ("STOP", ("STOP",), "", True),
        ("grüße", ("üß",), "gr", True),
        ("aab", ("ab", "b"), "a", True),
    ],
)
def test_stop_strings(text: str, stop: tuple[str, ...], shown: str, stopped: bool) -> None:
    """The text ends right before the earliest stop string; what only looked like one is given out after all."""
    pieces, out = stream(text.encode(), stop)
    assert ("".join(pieces), out.stopped) == (shown, stopped)


def test_a_possible_stop_string_is_held_back() -> None:
    """No piece ever shows text that could turn out to begin a stop string."""
    out = TextStream(decode_bytes, [], ("hello",))
    assert [out.push(byte) for byte in b"say hel"] == ["s", "a", "y", " ", "", "", ""]
    assert out.push(ord("p")) == "help"


def test_a_decoder_that_drops_the_first_space_keeps_it_behind_a_prompt() -> None:
    """Sentencepiece decoders strip a leading space; seen behind the prompt, the space survives."""
    words = ["Hi", " there", " you"]
    out = TextStream(lambda ids: "".join(words[i] for i in ids).lstrip(), [0])
    assert out.push(1) + out.push(2) == " there you"


@given(text=st.text(max_size=40), stops=st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_streamed_text_is_the_text_up_to_the_first_stop(text: str, stops: list[str]) -> None:
    """Whatever the text and the stop strings: joined pieces are the text, cut at the earliest stop string's end."""
    raw = text.encode("utf-8", "ignore")
    text = raw.decode()
    if text.endswith("\ufffd"):
        return
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    pieces, out = stream(raw, tuple(stops))
    assert out.stopped == bool(ends)
    if ends:
        first_end = min(end for end, _ in ends)
        expected = text[: min(at for end, at in ends if end == first_end)]
        assert "".join(pieces) == expected
    else:
        assert "".join(pieces) == text
