"""handlers.generation.answer_parser: answers split into reasoning, content and calls, however they are cut."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.generation.answer_parser import AnswerParser, message
from runtime.answer_format import GENERIC, AnswerFormat, ToolSyntax
from runtime.model.answer_formats import syntaxes

NAMES = ("get", "get_all", "a-b")
ARGUMENTS = ("{}", '{"x": 1}', '{"text": "}{\\"]", "deep": {"list": [1, {"y": "\\\\"}]}}')


def form_of(syntax: ToolSyntax, *, hidden: bool) -> AnswerFormat:
    """A format with control tokens at both ends, or with none."""
    tokens = {token: 1000 + i for i, token in enumerate(("[TOOL_CALLS]", "<|python_tag|>", "[ARGS]", "<|tool_call|>"))}
    return AnswerFormat(syntax, hidden=tokens if hidden else {})


def written(syntax: ToolSyntax, calls: list[tuple[str, str]]) -> str:
    """The calls in a model's syntax."""
    texts = [
        syntax.before_name + name + syntax.before_arguments + arguments + syntax.after_arguments
        for name, arguments in calls
    ]
    return syntax.begin + syntax.separator.join(texts) + syntax.end


def tokens(form: AnswerFormat, text: str, cuts: list[int]) -> list[tuple[int, str]]:
    """A text cut into tokens at some positions, and at its control tokens, which have no text."""
    found: list[tuple[int, str]] = []
    for start, end in itertools.pairwise([0, *sorted({cut for cut in cuts if 0 < cut < len(text)}), len(text)]):
        rest = text[start:end]
        while rest:
            places = {rest.find(token): token for token in form.hidden if token in rest}
            place = min(places, default=len(rest))
            if place:
                found.append((0, rest[:place]))
            if place < len(rest):
                found.append((form.hidden[places[place]], ""))
                place += len(places[place])
            rest = rest[place:]
    return found


def parsed(form: AnswerFormat, pieces: list[tuple[int, str]], **options: Any) -> dict[str, Any]:
    """The message of an answer."""
    numbers = itertools.count()
    parser = AnswerParser(form, NAMES, new_id=lambda: str(next(numbers)), **options)
    deltas = [delta for token_id, text in pieces for delta in parser.push(token_id, text)]
    return message([*deltas, *parser.finish()])


def whole(form: AnswerFormat, text: str, **options: Any) -> dict[str, Any]:
    """The message of an answer that comes in one piece, apart from its control tokens."""
    return parsed(form, tokens(form, text, []), **options)


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("syntax", syntaxes(), ids=lambda syntax: syntax.name)
@given(data=st.data())
def test_any_split(syntax: ToolSyntax, hidden: bool, data: st.DataObject) -> None:
    """Content and calls of every syntax are found in the same way however the text is cut, and no tag is in them."""
    form = form_of(syntax, hidden=hidden)
    content = "" if syntax.bare else data.draw(st.text("ab <|_tol{[\n\u00e9", max_size=20))
    calls = data.draw(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(ARGUMENTS)), min_size=1, max_size=3))
    text = content + written(syntax, calls)
    pieces = tokens(form, text, [])  # control tokens are never cut
    places = list(itertools.accumulate(len(piece) for _, piece in pieces))
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=40))
    split: list[tuple[int, str]] = []
    for (token_id, piece), end in zip(pieces, places, strict=True):
        start = end - len(piece)
        inner = sorted({cut - start for cut in cuts if start < cut < end})
        split += [(token_id, piece[a:b]) for a, b in itertools.pairwise([0, *inner, len(piece)])] or [(token_id, "")]
    answer = parsed(form, split)
    assert answer["content"] == (content.rstrip() or None)
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in answer["tool_calls"]] == calls
    assert [call["id"] for call in answer["tool_calls"]] == [f"call_{i}" for i in range(len(calls))]


def test_deltas() -> None:
    """The first delta of a call has index, id, type, name and no arguments; the others have pieces of them."""
    parser = AnswerParser(AnswerFormat(), NAMES, new_id=lambda: "1")
    deltas = [
        delta
        for piece in ("Hm", ". ", '<tool_call>\n{"name": "get", "arguments": {"x"', ": 1}}\n</tool_call>")
        for delta in parser.push(0, piece)
    ]
    assert deltas == [
        {"content": "Hm"},
        {"content": "."},
        {
            "tool_calls": [
                {"index": 0, "id": "call_1", "type": "function", "function": {"name": "get", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
    ]
    assert parser.finish() == []
    assert (parser.calls, parser.complete) == (1, True)


@pytest.mark.parametrize(
    "text",
    ["Hello. ", " <tool", "a < b", '{"name": "get"}', "x <tool_call", "", "\n"],
)
def test_content_that_is_no_call(text: str) -> None:
    """Text that only begins as a call could is content, white space included."""
    assert whole(AnswerFormat(), text) == {"role": "assistant", "content": text}


def test_content_without_tools() -> None:
    """Without tools nothing is held back."""
    parser = AnswerParser(AnswerFormat(), new_id=str)
    assert parser.push(0, "a <tool_call>\n") == [{"content": "a <tool_call>\n"}]


@pytest.mark.parametrize(
    ("text", "content", "arguments"),
    [
        ("Hm\n<tool_call>", "Hm\n", None),
        ('<tool_call>\n{"name": "ge', "", None),
        ('Hm\n<tool_call>\n{"name": "get", "arguments": {"x": "a', "Hm", '{"x": "a'),
        ('<tool_call>\n{"name": "get", "arguments": {"x": 1}', None, '{"x": 1}'),
    ],
)
def test_answer_that_is_cut_off(text: str, content: str | None, arguments: str | None) -> None:
    """The pieces of a call that has begun are given as far as they go; its tag is never in the content."""
    answer = whole(AnswerFormat(), text)
    assert answer["content"] == content
    assert [call["function"]["arguments"] for call in answer.get("tool_calls", [])] == (
        [arguments] if arguments else []
    )


def test_bare_call_at_the_start_only() -> None:
    """In a syntax whose calls need no beginning, JSON behind other text is content."""
    bare = replace(GENERIC, before_name='{"name": "', after_arguments="}", bare=True)
    text = '{"name": "get", "arguments": {}}'
    assert len(whole(AnswerFormat(bare), text)["tool_calls"]) == 1
    assert whole(AnswerFormat(bare), f"So: {text}") == {"role": "assistant", "content": f"So: {text}"}


def test_answer_of_calls_only() -> None:
    """An answer that must call has no content, even if it is cut off in the name."""
    assert whole(AnswerFormat(), '<tool_call>\n{"na', calls_only=True)["content"] == ""


def test_spelled_control_token_is_content() -> None:
    """A text that reads like a control token begins no call."""
    syntax = next(syntax for syntax in syntaxes() if syntax.name == "mistral")
    text = written(syntax, [("get", "{}")])
    assert parsed(form_of(syntax, hidden=True), [(0, text)]) == {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("start", "text", "reasoning", "content"),
    [
        ("optional", "<think>\nWell.\n</think>\n\nYes.", "Well.", "Yes."),
        ("optional", "\n<think></think>Yes.", None, "Yes."),
        ("optional", "Yes <think>no</think>.", None, "Yes <think>no</think>."),
        ("optional", "<thin", None, "<thin"),
        ("open", "\nWell. </think>Yes.", "Well.", "Yes."),
        ("open", "Well. < /think", "Well. < /think", ""),
        ("open", "", None, ""),
        ("none", "<think>Well.</think>Yes.", None, "<think>Well.</think>Yes."),
        ("optional", "<think>a</think>\n", "a", ""),
    ],
)
def test_reasoning(start: Any, text: str, reasoning: str | None, content: str) -> None:
    """Reasoning is apart from the content, without its tags and white space around; each character may be a piece."""
    expected: dict[str, Any] = {"role": "assistant", "content": content}
    if reasoning is not None:
        expected["reasoning_content"] = reasoning
    for pieces in ([(0, text)], [(0, character) for character in text]):
        assert parsed(AnswerFormat(), pieces, reasoning=start) == expected


def test_control_tokens_elsewhere() -> None:
    """A control token of the syntax in a place where it means nothing has no text."""
    form = AnswerFormat(hidden={"<think>": 1, "</think>": 2})
    pieces = [(1, ""), (0, "a"), (1, ""), (0, "b"), (2, ""), (0, "c"), (2, ""), (0, "d")]
    expected = {"role": "assistant", "content": "cd", "reasoning_content": "ab"}
    assert parsed(form, pieces, reasoning="optional") == expected


def test_reasoning_before_a_call() -> None:
    """A call behind reasoning is found; its tokens of reasoning may be control tokens."""
    form = AnswerFormat(hidden={"<think>": 1, "</think>": 2})
    call = written(GENERIC, [("get", "{}")])
    answer = parsed(form, [(1, ""), (0, "\nI call <tool_call>"), (2, ""), (0, "\n\n" + call)], reasoning="optional")
    assert answer["reasoning_content"] == "I call <tool_call>"
    assert answer["content"] is None
    assert json.loads(answer["tool_calls"][0]["function"]["arguments"]) == {}
