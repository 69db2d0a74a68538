"""runtime.engine.json_schema: keywords that are rewritten, exactly or not at all."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import jsonschema
import pytest

from runtime.engine.json_schema import rewritten
from runtime.engine.schema_rules import UnsupportedKeyword
from tests.support.grammars import compiler, schema, walk

CAT = {
    "type": "object",
    "properties": {"kind": {"const": "cat", "type": "string"}, "lives": {"enum": [7, 9]}},
    "required": ["kind", "lives"],
    "additionalProperties": False,
}
DOG = {
    "type": "object",
    "properties": {"kind": {"const": "dog", "type": "string"}, "good": {"type": "boolean"}},
    "required": ["kind"],
    "additionalProperties": False,
}
COLOURS = {"type": "string", "enum": ["red", "green", "blue"]}


def closed(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the schema of an object that has no other properties."""
    return {"type": "object", "properties": properties, "additionalProperties": False, **more}


def texts(definition: Any, tries: int = 25) -> list[Any]:
    """Return the values of random texts that a schema's grammar allows."""
    found = (walk(compiler().compile(schema(definition)), random.Random(seed), 120) for seed in range(tries))
    return [json.loads(text) for text in found if text is not None]


@pytest.mark.parametrize(
    "definition",
    [
        pytest.param({"oneOf": [CAT, DOG]}, id="oneOf by a constant"),
        pytest.param(
            {"$defs": {"Cat": CAT, "Dog": DOG}, "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]},
            id="oneOf by references, as pydantic writes it",
        ),
        pytest.param({"oneOf": [{"type": "null"}, {"type": "integer"}, COLOURS]}, id="oneOf by type"),
        pytest.param({"oneOf": [{"enum": [1, 2]}, {"const": 3.0}, {"enum": [True, "1"]}]}, id="oneOf by value"),
        pytest.param(
            {"oneOf": [{"anyOf": [{"const": "a"}, {"const": "b"}]}, {"allOf": [{"enum": ["b", "c"]}, {"const": "c"}]}]},
            id="oneOf of anyOf and allOf",
        ),
        pytest.param(
            {"oneOf": [closed({"a": {"const": 1}}, required=["a"]), closed({"b": {"const": 1}}, required=["b"])]},
            id="oneOf by a property that the others may not have",
        ),
        pytest.param({"oneOf": [{"type": "boolean"}, {"type": "null"}], "anyOf": [True]}, id="oneOf beside anyOf"),
        pytest.param({"type": "array", "items": COLOURS, "uniqueItems": True, "minItems": 2}, id="uniqueItems"),
        pytest.param(
            {
                "$defs": {"Colour": COLOURS},
                "type": "array",
                "items": {"$ref": "#/$defs/Colour"},
                "uniqueItems": True,
                "maxItems": 1,
            },
            id="uniqueItems of one",
        ),
        pytest.param({"type": "array", "items": COLOURS, "uniqueItems": False}, id="uniqueItems false"),
        pytest.param({"type": "array", "items": {"type": "null"}, "contains": {}, "maxItems": 3}, id="contains"),
        pytest.param({"enum": ["a", "b", 3], "not": {"enum": ["b", 3.0]}}, id="not values"),
        pytest.param({"not": {"type": ["object", "array", "string", "number"]}}, id="not types"),
        pytest.param(
            closed({"a": {"const": 1}, "b": {"const": 2}}, **{"not": {"required": ["a", "b"]}}), id="not both"
        ),
        pytest.param({"type": "boolean", "not": False}, id="not false"),
        pytest.param(
            closed(
                {"kind": {"enum": ["x", "y"]}, "size": {"enum": [1, 2]}},
                **{
                    "if": {"properties": {"kind": {"const": "x"}}},
                    "then": {"required": ["size"]},
                    "else": {"properties": {"size": {"const": 2}}},
                },
            ),
            id="if",
        ),
        pytest.param(
            closed(
                {"kind": {"enum": ["x", "y"]}, "size": {"enum": [1, 2]}},
                required=["kind"],
                allOf=[{"if": {"properties": {"kind": {"const": "y"}}}, "then": {"required": ["size"]}}],
            ),
            id="if inside of allOf",
        ),
        pytest.param({"type": "boolean", "if": {"const": True}}, id="if alone"),
        pytest.param(
            closed({"a": {"const": 1}, "b": {"const": 2}}, dependentRequired={"a": ["b"]}), id="dependentRequired"
        ),
        pytest.param(
            closed(
                {"a": {"const": 1}, "b": {"enum": [2, 3]}}, dependentSchemas={"a": {"properties": {"b": {"const": 3}}}}
            ),
            id="dependentSchemas",
        ),
        pytest.param(closed({"a": {"const": 1}, "b": {"const": 2}}, dependencies={"b": ["a"]}), id="dependencies"),
        pytest.param(
            {"type": "object", "propertyNames": COLOURS, "additionalProperties": {"type": "boolean"}},
            id="propertyNames of a list, as pydantic writes it",
        ),
        pytest.param(
            {"type": "object", "propertyNames": {"pattern": "^[ab]$"}, "additionalProperties": {"type": "null"}},
            id="propertyNames by a pattern",
        ),
        pytest.param(
            {"type": "object", "properties": {"a": {"const": 1}}, "unevaluatedProperties": False},
            id="unevaluatedProperties",
        ),
        pytest.param(
            {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "unevaluatedItems": False},
            id="unevaluatedItems",
        ),
        pytest.param({"type": "integer", "minimum": 3, "exclusiveMaximum": 5, "format": "int64"}, id="formats"),
        pytest.param(closed({"a": {"const": 1}, "b": {"const": 2}}, minProperties=1), id="minProperties"),
        pytest.param(
            closed({"a": {"const": 1}, "b": {"const": 2}}, minProperties=2, required=["a", "b"]),
            id="minProperties that are required",
        ),
    ],
)
def test_rewritten_keywords_are_followed(definition: Any) -> None:
    """Texts are valid under the schema as it was sent, and they are not all the same where it has several values."""
    found = texts(definition)
    assert found
    for value in found:
        jsonschema.validate(value, definition, jsonschema.Draft202012Validator)


def test_many_options() -> None:
    """Any number of options that list their values, or have a property that tells them apart."""
    values = [{"const": number, "title": f"the number {number}"} for number in range(500)]
    assert rewritten({"oneOf": values}) == {"anyOf": values}
    objects = [closed({"kind": value}, required=["kind"]) for value in values]
    assert rewritten({"oneOf": objects}) == {"anyOf": objects}


def test_work_is_limited() -> None:
    """Rules that list the values of a schema again and again stop at a limit."""
    kinds = {"type": "object", "properties": {"k": {"enum": list(range(3000))}}}
    tests = [{"if": {"properties": {"k": {"const": number}}}, "then": {"required": ["a"]}} for number in range(1000)]
    with pytest.raises(UnsupportedKeyword, match=r"^if at allOf\.\d+ is .* more than 20000 values"):
        rewritten(kinds | {"allOf": tests})


def test_the_fourth_drafts_exclusive_bounds() -> None:
    """They are booleans beside the bound."""
    definition = {"type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 5, "exclusiveMaximum": False}
    assert {*texts(definition)} == {4, 5}


def test_all_options_remain() -> None:
    """No option of a oneOf, no value of a negation and no case of a condition is lost."""
    assert {value["kind"] for value in texts({"oneOf": [CAT, DOG]})} == {"cat", "dog"}
    assert {*texts({"enum": ["a", "b", "c"], "not": {"const": "b"}})} == {"a", "c"}
    arrays = texts({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}, 60)
    assert {tuple(value) for value in arrays} == {(), (1,), (2,), (1, 2), (2, 1)}
    condition = {"if": {"properties": {"k": {"const": 1}}}, "then": {"required": ["s"]}, "else": {"required": ["t"]}}
    objects = texts(closed({"k": {"enum": [1, 2]}, "s": {"const": 0}, "t": {"const": 0}}, **condition), 120)
    assert {tuple(value) for value in objects} == {("s",), ("s", "t"), ("k", "s"), ("k", "t"), ("k", "s", "t")}


def test_a_discriminator_is_required() -> None:
    """OpenAPI requires it, and pydantic leaves it out of ``required`` where it has a default. Cycles are allowed."""
    leaf = closed({"kind": {"const": "leaf", "default": "leaf"}})
    pair = closed({"kind": {"const": "pair", "default": "pair"}, "left": {"$ref": "#/$defs/Tree"}}, required=["left"])
    tree = {
        "discriminator": {"propertyName": "kind"},
        "oneOf": [{"$ref": "#/$defs/Leaf"}, {"$ref": "#/$defs/Pair"}],
    }
    definition = {"$defs": {"Leaf": leaf, "Pair": pair, "Tree": tree}, "$ref": "#/$defs/Tree"}
    found = texts(definition)
    assert {value["kind"] for value in found} == {"leaf", "pair"}
    for value in found:
        jsonschema.validate(value, definition)


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "oneOf is .* 0 and 1 may match the same value"),
        ({"oneOf": [CAT, DOG, closed({"kind": {"type": "string"}})]}, "oneOf is .* 1 and 2"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "oneOf"),
        ({"properties": {"a": {"not": {"pattern": "x"}}}}, "not at properties.a is not supported"),
        ({"not": {"type": "integer"}}, "not"),
        ({"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}}, "if"),
        ({"items": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}}, "uniqueItems at items"),
        ({"type": "array", "contains": {"const": 1}}, "contains"),
        ({"type": "array", "contains": {}, "maxContains": 2}, "contains"),
        ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames"),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "object", "allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False}, "unevaluatedProp"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
    ],
)
def test_what_cannot_be_had_exactly_is_refused_by_name(definition: Any, said: str) -> None:
    """With its place in the schema."""
    with pytest.raises(UnsupportedKeyword, match=f"^{said}"):
        rewritten(definition)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://json-schema.org/draft-07/schema", "http://json-schema.org/draft-07/schema#"),
        ("http://json-schema.org/draft-07/schema#", "http://json-schema.org/draft-07/schema#"),
        ("http://json-schema.org/draft/2020-12/schema", "https://json-schema.org/draft/2020-12/schema"),
        ("https://example.com/mine", None),
        (7, None),
    ],
)
def test_the_draft_of_a_schema(given: Any, kept: str | None) -> None:
    """It is kept in the library's spelling, and left out if it would have to be fetched."""
    definition = {"$schema": given, "$id": "https://some/name", "type": "object", "properties": {}}
    assert rewritten(definition).get("$schema") == kept
    compiler().compile(schema(definition))


def test_identifiers_inside_a_schema_change_its_references() -> None:
    """So nothing is concluded from what a reference seems to point at."""
    unlike = {"type": "object", "oneOf": [{"$ref": "#/$defs/a"}, {"type": "null"}], "$defs": {"a": {"type": "string"}}}
    assert "anyOf" in rewritten(unlike | {"$id": "https://example.com/root"})
    with pytest.raises(UnsupportedKeyword, match=r"^oneOf"):
        rewritten({"$id": "https://example.com/root", "properties": {"a": unlike | {"$id": "inner"}}})


def test_counts_may_be_written_with_a_fraction_of_zero() -> None:
    """2.0 is an integer in JSON Schema."""
    assert rewritten({"maxItems": 2.0, "minLength": 1}) == {"maxItems": 2, "minLength": 1}


def test_unknown_keywords_and_formats_are_annotations() -> None:
    """As the specification has it; a schema does not change how the library reads it."""
    definition = {"x-guidance": {"lenient": True}, "type": "string", "format": "colour", "x-order": 1}
    assert rewritten(definition) == {"type": "string", "x-order": 1}
    assert rewritten({"type": "string", "format": "date"}) == {"type": "string", "format": "date"}


@pytest.mark.parametrize(
    "definition",
    [
        {"oneOf": 3},
        {"oneOf": [{"properties": 5, "required": 7, "type": ["object"]}, {"$ref": "#/nowhere"}]},
        {"not": 5},
        {"if": [], "then": {}},
        {"type": "object", "dependentRequired": []},
        {"discriminator": "kind", "oneOf": [5]},
        {"type": "array", "uniqueItems": True, "items": []},
    ],
)
def test_malformed_schemas_are_refused_or_left_to_the_library(definition: Any) -> None:
    """No other error is raised."""
    with contextlib.suppress(UnsupportedKeyword):
        rewritten(definition)
