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


@pytest.mark.parametrize("broken", [b"\xff" * 30, b"\x80" * 9, b"a\xf0" * 20, "\ufffd\ufffd\ufffd".encode() * 5])
def test_bytes_that_are_no_text_are_marked_and_harm_nothing_behind_them(broken: bytes) -> None:
    """Broken bytes come out as replacement marks before long, and the characters after them whole."""
    raw = broken + "😀 fine".encode()
    pieces, _ = stream(raw)
    assert "".join(pieces) == decode_bytes(list(raw))
    assert "".join(pieces[: len(broken)]), "nothing is held back for ever"


def test_the_cost_of_a_token_does_not_grow_with_the_text() -> None:
    """Only the end of a text is decoded, once per token and a little, also where its bytes are broken."""
    for text in (b"word " * 400, b"\xff" * 2000, "日本語".encode() * 200):
        sizes: list[int] = []

        def decode(ids: list[int], sizes: list[int] = sizes) -> str:
            sizes.append(len(ids))
            return decode_bytes(ids)

        out = TextStream(decode, [])
        for byte in text:
            out.push(byte)
        assert max(sizes) <= 20
        assert len(sizes) <= 1.5 * len(text)


def test_control_tokens_are_no_context() -> None:
    """However many control tokens come, the word behind them keeps its leading space, and none is kept."""
    words = ["Hi", " there", ""]
    kept: list[int] = []

    def decode(ids: list[int]) -> str:
        kept.append(len(ids))
        return "".join(words[i] for i in ids).lstrip()

    out = TextStream(decode, [0])
    assert [out.push(i) for i in [2] * 50 + [1]] == [""] * 50 + [" there"]
    assert max(kept) <= 2


@pytest.mark.parametrize(
    ("text", "stop", "least", "shown", "stopped"),
    [
        ("a.b.c", (".",), 0, "a", True),
        ("a.b.c", (".",), 2, "a", True),
        ("a.b.c", (".",), 3, "a.b", True),
        ("a.b.c", (".",), 5, "a.b.c", False),
        ("aaaa", ("aa",), 3, "a", True),
        ("xabq", ("ab", "xabyz"), 4, "xabq", False),
        ("xaby", ("ab", "by"), 4, "xa", True),
    ],
)
def test_stop_strings_before_the_least_length_are_text(
    text: str, stop: tuple[str, ...], least: int, shown: str, stopped: bool
) -> None:
    """A stop string that is complete before min_new_tokens is text like any other; one completed later counts."""
    out = TextStream(decode_bytes, [], stop, least)
    pieces = []
    for byte in text.encode():
        pieces.append(out.push(byte))
        if out.stopped:
            break
    else:
        pieces.append(out.flush())
    assert ("".join(pieces), out.stopped) == (shown, stopped)


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
