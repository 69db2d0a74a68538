"""Messages' text keeps its origin through whatever a template does to it, and behaves like any text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.model.message_text import STAND_INS, Marks

MARKS = Marks("own \u2581 text")
OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "split": lambda t: t.split("ab"),
    "split at most": lambda t: t.split("a", 1),
    "split at white space": lambda t: t.split(),
    "split at some white space": lambda t: t.split(None, 1),
    "rsplit": lambda t: t.rsplit("a", 1),
    "rsplit at white space": lambda t: t.rsplit(None, 2),
    "splitlines": lambda t: t.splitlines(),
    "splitlines with ends": lambda t: t.splitlines(True),
    "partition": lambda t: t.partition("b"),
    "rpartition": lambda t: t.rpartition("b"),
    "strip": lambda t: t.strip(),
    "strip characters": lambda t: t.strip("ab "),
    "lstrip": lambda t: t.lstrip("\n"),
    "rstrip": lambda t: t.rstrip(),
    "removeprefix": lambda t: t.removeprefix("ab"),
    "removesuffix": lambda t: t.removesuffix("ab"),
    "replace": lambda t: t.replace("ab", "<x>"),
    "replace some": lambda t: t.replace("a", "", 2),
    "replace by itself": lambda t: t.replace("a", t),
    "slices": lambda t: [t[1:], t[:-2], t[::-1], t[2:5]],
    "one character": lambda t: t[0] if t else t,
    "characters": lambda t: list(t),
    "sums": lambda t: ["<x>" + t, t + "<x>", t + t],
    "case": lambda t: [t.upper(), t.lower(), t.title(), t.capitalize()],
    "a list of texts": lambda t: repr([t]),
    "questions": lambda t: [
        *(t.startswith("ab"), t.endswith("ab"), t.find("b"), t.count("a"), "ab" in t, t in ("ab", ""), t == "ab"),
        *(
            t != "ab",
            t in ["x", "ab"],
            {"ab": 1}.get(t),
            len(t),
            bool(t),
            t.isdigit(),
            t.startswith(t),
            t.split(t or "x"),
        ),
    ],
}


def unmarked(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(unmarked, value))
    return MARKS.unmark(value)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=list(OPERATIONS))
@settings(max_examples=60)
@given(text=st.text(alphabet="ab \n<\u2581\u00e9\U0001f680", max_size=12))
def test_it_behaves_like_the_true_text(operation: Callable[[Any], Any], text: str) -> None:
    """Every operation gives what it gives for an ordinary string, and says so in stand-ins, too."""
    result = operation(MARKS.mark(text))
    assert unmarked(result) == operation(text)
    for piece in result if isinstance(result, list | tuple) else [result]:
        if isinstance(piece, str):
            assert MARKS.unmark("".join([piece])) == MARKS.unmark(piece)  # both of its forms agree


@settings(max_examples=100)
@given(text=st.text(min_size=1))
def test_every_character_but_white_space_is_known_as_a_messages(text: str) -> None:
    """Whatever it is, in the class and out of it."""
    marked = MARKS.mark(text)
    plain = "".join([marked])
    assert MARKS.unmark(plain) == text
    for index, character in enumerate(text):
        expected = None if character.isspace() else index
        assert MARKS.first_of_message(plain, index, index + 1) == expected
        assert MARKS.first_of_message(plain, index, index + 1) == MARKS.first_of_message(marked, index, index + 1)


def test_a_templates_own_text_is_known_as_such() -> None:
    """Before and after a message's."""
    text = "own <|x|> " + MARKS.mark("<|x|>") + " text"
    assert MARKS.first_of_message(text, 0, 10) is None
    assert MARKS.first_of_message(text, 0, len(text)) == 10
    assert MARKS.first_of_message(text, 15, len(text)) is None


def test_a_text_that_lost_its_class_is_recognized() -> None:
    """Formatting gives an ordinary string, with stand-ins still in it."""
    lost = "<{}>".format("".join([MARKS.mark("ab")]))
    assert type(lost) is str
    assert STAND_INS.search(lost)
    assert MARKS.recognize(lost).split("b") == ["<a", ">"]
    assert type(MARKS.recognize("<ab>")) is str
    assert type(MARKS.join(["a", "b"])) is str


def test_beyond_the_number_of_stand_ins_text_counts_as_a_messages() -> None:
    """A template in thousands of different characters."""
    marks = Marks("".join(map(chr, range(0x4E00, 0x4E00 + 5000))))
    text = marks.mark("\u4e00\u6000")
    assert [marks.first_of_message(text, index, index + 1) for index in (0, 1)] == [0, 1]
    assert MARKS.unmark(text) == marks.unmark("".join([text])) == "\u4e00\u6000"
