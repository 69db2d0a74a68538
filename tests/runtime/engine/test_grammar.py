"""Grammars: what they allow next, what they force, and how they fail."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest

from runtime.engine.grammar import MAX_DEFINITION_CHARACTERS, GrammarCompiler
from runtime.errors import InternalError, InvalidRequest
from runtime.types import Grammar
from tests.support.grammars import END, TOKENIZER, VOCABULARY, compiler, schema, walk

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bc"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "definition",
    [
        PERSON,
        {"type": "object"},
        {"enum": ["x", 3, None, {"a": [1]}]},
        {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "number"}, "minItems": 1}]},
        {"$defs": {"n": {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
        {"type": "string", "pattern": "^[a-z]+[0-9]{2}$"},
        {"type": "string", "format": "date"},
        True,
    ],
)
def test_every_text_that_a_schema_allows_is_valid(definition: Any) -> None:
    """Whatever is chosen from the masks, the text parses and validates; it has no free white space."""
    ended = 0
    for seed in range(15):
        text = walk(compiler().compile(schema(definition)), random.Random(seed))
        if text is not None:
            ended += 1
            jsonschema.validate(json.loads(text), definition)
            assert "\n" not in text
    assert ended


def test_regular_expressions_and_lark() -> None:
    """The whole text matches."""
    for seed in range(10):
        text = walk(compiler().compile(Grammar("regex", "[ab]{2,5}c?", "guided_regex")), random.Random(seed))
        assert text is not None
        assert re.fullmatch("[ab]{2,5}c?", text)
    lark = 'start: "(" start ")" | "x"'
    text = walk(compiler().compile(Grammar("lark", lark, "guided_grammar")), random.Random(3))
    assert text is not None
    assert re.fullmatch(r"\(*x\)*", text)
    assert text.count("(") == text.count(")")


def test_what_is_certain_is_forced() -> None:
    """As the tokenizer writes it; the matcher is ahead of the sequence by these tokens, and the end is forced, too."""
    matcher = compiler().compile(schema(PERSON))
    start = TOKENIZER.encode('{"name": "')
    assert matcher.forced == start[: len(matcher.forced)] != []
    matcher.accept(matcher.forced[:2])
    assert matcher.forced == start[2 : 2 + len(matcher.forced)]
    assert not matcher.ends
    constant = compiler().compile(schema({"const": "abc"}))
    assert b"".join(map(TOKENIZER.token_bytes, constant.forced)) == b'"abc"'
    assert constant.ends
    constant.accept([*constant.forced, END])
    assert constant.forced == []


def test_a_wrong_token_is_an_error() -> None:
    """Another than the forced one, and one that the grammar does not allow."""
    with pytest.raises(InternalError, match="forces"):
        compiler().compile(schema({"const": "abc"})).accept(TOKENIZER.encode("x"))
    matcher = compiler().compile(Grammar("regex", "[ab]+", "guided_regex"))
    with pytest.raises(InternalError):
        matcher.accept(TOKENIZER.encode("z"))


def test_drafts_are_valid_up_to_the_first_wrong_one() -> None:
    """An end token is never drafted."""
    matcher = compiler().compile(Grammar("regex", "[ab]+", "guided_regex"))
    good = TOKENIZER.encode("a") * 3
    assert matcher.valid([*good, *TOKENIZER.encode("z"), *good]) == 3
    assert matcher.valid([*good, END, *good]) == 3
    matcher.accept(good)  # the question changed nothing


@pytest.mark.parametrize(
    ("kind", "definition", "said"),
    [
        ("json_schema", {"type": "frog"}, "frog"),
        ("json_schema", {"properties": {"a": {"uniqueItems": True}}}, "uniqueItems at properties.a is not supported"),
        ("json_schema", {"$dynamicRef": "#node"}, 'Unimplemented keys: \\["\\$dynamicRef"\\]'),
        ("json_schema", {"type": "integer", "minimum": 5, "maximum": 4}, "Unsatisfiable"),
        ("json_schema", False, "nsatisfiable"),
        ("json_schema", {"$ref": "https://example.com/x"}, "example.com"),
        ("json_schema", {"$ref": "#"}, "matches"),
        ("regex", "[", "regex"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "(a)\\1", "backreferences"),
        ("lark", "start: /a/ foo", "foo"),
        ("lark", "start: start", "matches"),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(kind: Any, definition: Any, said: str) -> None:
    """Wrong ones, unsupported keywords, and those that nothing matches."""
    text = definition if isinstance(definition, str) else json.dumps(definition)
    with pytest.raises(InvalidRequest, match=f"(?s)^a field: .*{said}") as error:
        compiler().compile(Grammar(kind, text, "a field"))
    assert error.value.param == "a field"
    assert len(error.value.message) < 400


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("regex", "a" * (MAX_DEFINITION_CHARACTERS + 1), "f"),
        Grammar("json_schema", "[" * 50_000, "f"),
        Grammar("json_schema", '{"type": "object", "properties": {"a": ' * 200 + "1" + "}}" * 200, "f"),
        schema({"allOf": [{"type": "string", "pattern": f"^.*{letter}.*$"} for letter in "abcdefghijklmnopqrst"]}),
        Grammar("lark", "start: " + " | ".join(f'"{i}"' for i in range(100_000)), "f"),
    ],
)
def test_hostile_grammars_are_refused(grammar: Grammar) -> None:
    """Too long, too deep, too complex."""
    with pytest.raises(InvalidRequest):
        compiler().compile(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("regex", "b?a{1000000}", "f"),
        Grammar(
            "json_schema",
            '{"type": "array", "prefixItems": [{}], "items": {"const": 1}, "minItems": 500000}',
            "f",
        ),
    ],
)
def test_a_grammar_that_becomes_too_complex_is_the_requests_fault(grammar: Grammar) -> None:
    """Even if it is found only while the text grows."""
    with pytest.raises(InvalidRequest, match=r"^f: .*(?i:too many|limit)"):
        walk(compiler().compile(grammar), random.Random(1))


def test_a_tokenizer_with_more_tokens_than_the_model() -> None:
    """Only the model's own are allowed or forced."""
    small = compiler(400)
    matcher = small.compile(Grammar("regex", "[a-z ]{1,50}", "guided_regex"))
    assert len(matcher.mask()) == 13
    assert matcher.mask()[-1] < 1 << 16


def test_compiled_grammars_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones; each matcher is on its own."""
    monkeypatch.setattr("runtime.engine.grammar._MAX_COMPILED", 2)
    made = compiler()
    one, other = (made.compile(schema(PERSON)) for _ in range(2))
    one.accept([*one.forced])
    assert other.forced
    assert len(made._compiled) == 1
    for number in range(3):
        made.compile(Grammar("regex", f"a{number}", "guided_regex"))
    assert [definition for _, definition in made._compiled] == ["a1", "a2"]


def test_a_model_without_an_end_token_has_no_grammars() -> None:
    """Its texts could never end."""
    with pytest.raises(InvalidRequest, match="no token that ends"):
        GrammarCompiler(TOKENIZER, end_ids=[], vocabulary=VOCABULARY).compile(schema(PERSON))
