"""Text from tokens: characters whole, stop strings never shown, nothing lost."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from runtime.engine.detokenizer import IncrementalDetokenizer
from runtime.model.tokenizer import Tokenizer


class Bytes:
    """A byte-level vocabulary: an id is a byte. Remembers how many ids were decoded at a time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        self.sizes.append(len(ids))
        return bytes(ids).decode("utf-8", "replace")

    def has_text(self, token_id: int) -> bool:
        return True

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


class Words(Bytes):
    """A vocabulary of words, the last of them a control token, whose texts lose their first space."""

    def __init__(self, *words: str) -> None:
        super().__init__()
        self._words = words

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        self.sizes.append(len(ids))
        return "".join(self._words[i] for i in ids if self.has_text(i)).lstrip()

    def has_text(self, token_id: int) -> bool:
        return token_id < len(self._words) - 1

    def token_bytes(self, token_id: int) -> bytes:
        return self._words[token_id].encode()


def stream(text: bytes, stop: tuple[str, ...] = ()) -> tuple[list[str], IncrementalDetokenizer]:
    out = IncrementalDetokenizer(Bytes(), [], stop)
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


def test_a_replacement_character_that_the_model_wrote_is_kept() -> None:
    """At once, and at the end of a text as well: only what is incomplete is held back."""
    pieces, _ = stream("a\ufffd".encode())
    assert [piece for piece in pieces if piece] == ["a", "\ufffd"]
    assert "".join(stream("\ufffd€".encode()[:-1])[0]) == "\ufffd"


def test_bytes_that_no_character_begins_with_are_kept_at_the_end() -> None:
    """They are not the beginning of anything, unlike what follows them."""
    assert "".join(stream(b"a\xff\xe6\x97")[0]) == "a\ufffd"


@pytest.mark.parametrize("broken", [b"\xff" * 30, b"\x80" * 9, b"a\xf0" * 20, "\ufffd\ufffd\ufffd".encode() * 5])
def test_bytes_that_are_no_text_are_marked_and_harm_nothing_behind_them(broken: bytes) -> None:
    """Broken bytes come out as replacement marks before long, and the characters after them whole."""
    raw = broken + "😀 fine".encode()
    pieces, _ = stream(raw)
    assert "".join(pieces) == raw.decode("utf-8", "replace")
    assert "".join(pieces[: len(broken)]), "nothing is held back for ever"


def test_the_cost_of_a_token_does_not_grow_with_the_text() -> None:
    """Only the end of a text is decoded, once per token and a little, also where its bytes are broken."""
    for text in (b"word " * 400, b"\xff" * 2000, "日本語".encode() * 200):
        tokenizer = Bytes()
        out = IncrementalDetokenizer(tokenizer, [])
        for byte in text:
            out.push(byte)
        assert max(tokenizer.sizes) <= 20
        assert len(tokenizer.sizes) <= 1.5 * len(text)


def test_stop_strings_end_at_control_tokens() -> None:
    """What is held back for a stop string comes out at a control token: texts before and behind it are apart."""
    out = IncrementalDetokenizer(Words("a", "b", "<end>"), [], ("ab",))
    assert [out.push(i) for i in (0, 2, 1)] == ["", "a", "b"]
    assert not out.stopped


def test_control_tokens_in_the_text() -> None:
    """Without skip_special_tokens their names are text, in which a stop string may begin or end."""
    words = Words("a", "b", "<end>")
    out = IncrementalDetokenizer(words, [], skip_special_tokens=False)
    assert [out.push(i) for i in (0, 2, 1)] == ["a", "<end>", "b"]
    out = IncrementalDetokenizer(words, [], ("a<end",), skip_special_tokens=False)
    assert [out.push(i) for i in (1, 0, 2)] == ["b", "", ""]
    assert out.stop_string == "a<end"


@pytest.mark.parametrize(("include", "skip", "text"), [(False, False, ""), (True, True, ""), (True, False, "<end>")])
def test_the_token_that_ends_a_text(include: bool, skip: bool, text: str) -> None:
    """It is text if the end is included and control tokens are not left out; what was held back comes before it."""
    out = IncrementalDetokenizer(Words("a", "b", "<end>"), [], ("ab",), include_stop=include, skip_special_tokens=skip)
    assert out.push(0) == ""
    assert out.end(2) == "a" + text


def test_a_stop_string_that_is_included() -> None:
    """The text ends behind it, without what the same token adds."""
    out = IncrementalDetokenizer(Words("a", "bcd", "<end>"), [], ("bc",), include_stop=True)
    assert [out.push(0), out.push(1)] == ["a", "bc"]
    assert out.stopped


def test_control_tokens_are_no_context() -> None:
    """However many control tokens come, the word behind them keeps its leading space, and none is kept."""
    tokenizer = Words("Hi", " there", "<end>")
    out = IncrementalDetokenizer(tokenizer, [0])
    assert [out.push(i) for i in [2] * 50 + [1]] == [""] * 50 + [" there"]
    assert max(tokenizer.sizes) <= 2


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
    out = IncrementalDetokenizer(Bytes(), [], stop, least)
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
    assert out.stop_string == (next(string for string in stop if text.startswith(shown + string)) if stopped else None)


def test_a_possible_stop_string_is_held_back() -> None:
    """No piece ever shows text that could turn out to begin a stop string."""
    out = IncrementalDetokenizer(Bytes(), [], ("hello",))
    assert [out.push(byte) for byte in b"say hel"] == ["s", "a", "y", " ", "", "", ""]
    assert out.push(ord("p")) == "help"


def test_a_decoder_that_drops_the_first_space_keeps_it_behind_a_prompt() -> None:
    """Sentencepiece decoders strip a leading space; seen behind the prompt, the space survives."""
    out = IncrementalDetokenizer(Words("Hi", " there", " you", "<end>"), [0])
    assert out.push(1) + out.push(2) == " there you"


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """A text up to the stop string that is complete first, and whether there is one."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    if not ends:
        return text, False
    first_end = min(end for end, _ in ends)
    return text[: min(at for end, at in ends if end == first_end)], True


@given(text=st.text(max_size=40), stops=st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_streamed_text_is_the_text_up_to_the_first_stop(text: str, stops: list[str]) -> None:
    """Whatever the text and the stop strings: joined pieces are the text, cut at the earliest stop string's end."""
    raw = text.encode("utf-8", "ignore")
    pieces, out = stream(raw, tuple(stops))
    assert ("".join(pieces), out.stopped) == cut(raw.decode(), stops)


WORDS = ("a", "\u2581the", "\u2581", "\u00e9", "\ufffd", "\u65e5x")
CONTROL = "<s>"


def byte_level() -> Tokenizer:
    """Each byte, words, and tokens that end or begin inside a character."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [spell.pre_tokenize_str(word)[0][0] for word in WORDS]
    parts = [words[-1][:2], words[-1][1:], words[0] + words[-1][:1]]
    backend = Backend(models.BPE({token: i for i, token in enumerate(dict.fromkeys([*signs, *words, *parts]))}, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([CONTROL])
    return Tokenizer(backend, None, {})


def byte_fallback() -> Tokenizer:
    """As SentencePiece's: words with a sign for the space, and each byte for what is no word."""
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    backend = Backend(models.BPE({token: i for i, token in enumerate(tokens)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([CONTROL])
    return Tokenizer(backend, None, {})


TOKENIZERS = {"byte level": byte_level(), "byte fallback": byte_fallback()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
def test_streamed_tokens_are_the_whole_decoded(kind: str, data: st.DataObject) -> None:
    """Any tokens in any order, broken bytes among them: the joined pieces are what the whole decodes to, up to the
    first stop string or to a character that the last tokens leave incomplete, and that is UTF-8 with one U+FFFD for
    each broken part.
    """
    tokenizer = TOKENIZERS[kind]
    some = st.sampled_from(range(300))
    begun = [i for i in range(256) if tokenizer.token_bytes(i)[0] >= 0x80]  # else broken characters are rare
    ids = data.draw(st.lists(some | st.sampled_from(begun), max_size=12))
    ids = [i for i in ids if tokenizer.token_bytes(i)]
    raw = b"".join(tokenizer.token_bytes(i) for i in ids if tokenizer.has_text(i))
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert raw.decode("utf-8", "replace") in (whole, " " + whole)
    broken = raw[-2:-1] == b"\xed" and 0xA0 <= raw[-1] < 0xC0  # half of a surrogate is no beginning of a character
    complete = codecs.utf_8_decode(raw, "replace", broken)[0]
    complete = complete.removeprefix(" ") if kind == "byte fallback" else complete
    stops = data.draw(st.lists(st.sampled_from([*complete, "\ufffd\ufffd", "a "]), max_size=2))
    out = IncrementalDetokenizer(tokenizer, [], stops)
    pieces = []
    for token_id in ids:
        pieces.append(out.push(token_id))
        if out.stopped:
            break
    else:
        pieces.append(out.flush())
    assert ("".join(pieces), out.stopped) == cut(complete, stops)
