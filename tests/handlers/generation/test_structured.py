"""From a request's fields to the grammar of its text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handlers.generation.structured import requested_grammar
from handlers.schemas.parsing import parse
from handlers.schemas.requests import ChatRequest, CompleteRequest, CompletionsRequest, GenerateRequest
from runtime.errors import InvalidRequest
from runtime.types import Grammar

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TEXT = json.dumps(SCHEMA)


def asked(fields: dict[str, Any]) -> Grammar | None:
    return requested_grammar(parse(CompletionsRequest, {"prompt": "x", **fields}))


@pytest.mark.parametrize(
    ("fields", "kind", "definition", "field"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type": "object"}', "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            "json_schema",
            TEXT,
            "response_format.json_schema.schema",
        ),
        ({"guided_json": SCHEMA}, "json_schema", TEXT, "guided_json"),
        ({"guided_json": TEXT}, "json_schema", TEXT, "guided_json"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"guided_choice": ["a.b", "c", "a.b"]}, "regex", "(a\\.b)|(c)", "guided_choice"),
        ({"guided_grammar": "start: /a/"}, "lark", "start: /a/", "guided_grammar"),
        ({"guided_grammar": '# c\nroot ::= "a"'}, "gbnf", '# c\nroot ::= "a"', "guided_grammar"),
        ({"grammar": 'root ::=\n "a"'}, "gbnf", 'root ::=\n "a"', "grammar"),
        ({"grammar": 'start: "::="'}, "lark", 'start: "::="', "grammar"),
        ({"json_schema": SCHEMA}, "json_schema", TEXT, "json_schema"),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            "json_schema",
            TEXT,
            "response_format.schema",
        ),
        (
            {"response_format": {"type": "json_object", "schema": None}},
            "json_schema",
            '{"type": "object"}',
            "response_format",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            "json_schema",
            TEXT,
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "schema": SCHEMA}},
            "json_schema",
            TEXT,
            "response_format.schema",
        ),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", TEXT, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a"}}, "regex", "a", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a"]}}, "regex", "(a)", "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "start: /a/"}}, "lark", "start: /a/", "structured_outputs.grammar"),
        (
            {"structured_outputs": {"json_object": True}},
            "json_schema",
            '{"type": "object"}',
            "structured_outputs.json_object",
        ),
        (
            {"guided_regex": "a", "response_format": {"type": "text"}, "guided_json": None},
            "regex",
            "a",
            "guided_regex",
        ),
    ],
)
def test_each_field_gives_its_grammar(fields: dict[str, Any], kind: Any, definition: str, field: str) -> None:
    """With the name of the field, for errors."""
    assert asked(fields) == Grammar(kind, definition, field)


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"guided_json": None}])
def test_without_a_constraint_there_is_no_grammar(fields: dict[str, Any]) -> None:
    """Nothing, any text, null."""
    assert asked(fields) is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"guided_json": "{"}, "guided_json: input is not JSON"),
        ({"guided_json": 3}, "guided_json: input should be a JSON Schema"),
        ({"guided_json": "[]"}, "guided_json: input should be a JSON Schema"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [""]}, "guided_choice.0"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"structured_outputs": {}}, "structured_outputs: give one of"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs: give one of"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs: give one of"),
        ({"structured_outputs": {"xml": "a"}}, "structured_outputs.xml"),
        ({"response_format": {"type": "xml"}}, "response_format: type should be text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format: json_schema: field required"),
        (
            {"response_format": {"type": "json_schema", "schema": {}, "json_schema": {"schema": {}}}},
            "response_format: json_schema: field required",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema: field required",
        ),
        ({"response_format": {"type": "json_object", "schema": 123}}, "response_format.schema: input should be a JSON"),
        ({"grammar": ""}, "grammar"),
        ({"grammar": 'root ::= "a"', "json_schema": {}}, "give only one of json_schema, grammar"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "give only one of guided_regex, guided_choice"),
        (
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
            "give only one of response_format, guided_regex",
        ),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], said: str) -> None:
    """Each with what is wrong with it."""
    with pytest.raises(InvalidRequest) as error:
        asked(fields)
    assert said in error.value.message


def test_every_text_may_be_constrained() -> None:
    """In all operations that generate one."""
    for model, fields in (
        (GenerateRequest, {"prompt": "x"}),
        (CompleteRequest, {"prompt": "x"}),
        (ChatRequest, {"messages": [{"role": "user", "content": "x"}]}),
    ):
        assert requested_grammar(parse(model, {**fields, "guided_regex": "a"})) is not None
