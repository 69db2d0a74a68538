"""What can be proved about JSON schemas: references, listed values, types, and schemas without a value in common."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.engine.schema_facts import ALL_TYPES, SchemaFacts, properties, type_of

DOCUMENT = {"$defs": {"a/b": {"const": 1}, "list": {"anyOf": [{"const": 2}, {"const": 3}]}}}


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("#", DOCUMENT),
        ("#/$defs/a~1b", {"const": 1}),
        ("#/$defs/list/anyOf/1", {"const": 3}),
        ("#/$defs/list/anyOf/2", None),
        ("#/$defs/none", None),
        ("other.json#/$defs/list", None),
        (7, None),
    ],
)
def test_references_inside_the_document_are_resolved(reference: object, found: Any) -> None:
    """By names with escapes and by places in lists; what is elsewhere or not there is None."""
    assert SchemaFacts(DOCUMENT).resolve(reference) == found


def test_identifiers_inside_the_document_end_the_resolving() -> None:
    """A reference below an identifier means something else."""
    assert SchemaFacts({**DOCUMENT, "properties": {"x": {"$id": "other"}}}).resolve("#/$defs/list") is None


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        ({"enum": [1, "a", None], "type": ["integer", "null"]}, [1, None]),
        ({"allOf": [{"enum": [1, 2]}, {"enum": [2.0, 3]}]}, [2]),
        ({"type": "boolean"}, [False, True]),
        ({"type": "null"}, [None]),
        ({"type": "string"}, None),
        ({"enum": [1, 2], "minimum": 2}, None),
    ],
)
def test_listed_values(schema: Any, values: list[Any] | None) -> None:
    """The values that all parts of a schema list; None if there is no list, or something else limits it."""
    assert SchemaFacts(schema).values(schema) == values


def test_types() -> None:
    """A number is an integer or a fraction; ``false`` has no value; a list of values has its values' types."""
    facts = SchemaFacts({})
    assert facts.types(True) == ALL_TYPES
    assert facts.types(False) == frozenset()
    assert facts.types({"type": "number"}) == {"integer", "fraction"}
    assert facts.types({"enum": [1.0, 1.5, [], {}, True]}) == {"integer", "fraction", "array", "object", "boolean"}
    assert type_of("x") == "string"


@pytest.mark.parametrize(
    ("schemas", "overlap"),
    [
        ([{"const": 1}, {"const": 2}, {"const": 1.0}], (0, 2)),
        ([{"type": "string"}, {"type": "integer"}, False], None),
        ([{"type": "string"}, {"minLength": 1}], (0, 1)),
        ([{"anyOf": [{"const": 1}, {"const": 2}]}, {"enum": [3, 4]}], None),
        (
            [
                {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]}
                for kind in ("a", "b", "c")
            ],
            None,
        ),
        (
            [
                {"type": "object", "required": ["x"], "properties": {"x": {"type": kind}}}
                for kind in ("string", "integer")
            ],
            None,
        ),
        ([{"type": "object"}, {"type": "object", "required": ["x"]}], (0, 1)),
    ],
)
def test_schemas_that_may_share_a_value(schemas: list[Any], overlap: tuple[int, int] | None) -> None:
    """The first two that may; None if types, values or a property that all require tell them apart."""
    assert SchemaFacts(schemas).overlapping(schemas, 10) == overlap


def test_only_so_many_are_compared() -> None:
    """What was not compared is not proved."""
    assert SchemaFacts({}).overlapping([{"type": "string"}, {"type": "null", "x": 1}, {"type": "array"}], 2) == (0, 2)


def test_schemas_of_a_property() -> None:
    """Those that name it, and those of additional properties unless a pattern may match."""
    parts = [
        {"properties": {"x": 1}},
        {"additionalProperties": 2},
        {"additionalProperties": 3, "patternProperties": {}},
    ]
    assert properties(parts, "x") == [1, 2]
