"""What all requests share: null means "left out"."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from pydantic import BaseModel

from handlers.operations import OPERATIONS
from handlers.schemas.parsing import parse
from runtime.errors import InvalidRequest
from tests.e2e.test_same_answer import PAYLOADS


@pytest.mark.parametrize("operation", OPERATIONS)
def test_null_is_left_out(operation: str) -> None:
    """A field that may be left out may be null, which is the same request; one that may not is named."""
    model = OPERATIONS[operation].request
    for name, payload in itertools.product(model.model_fields, PAYLOADS[operation]):
        without = {field: value for field, value in payload.items() if field != name}
        assert _outcome(model, without | {name: None}) == _outcome(model, without), name


def _outcome(model: type[BaseModel], payload: dict[str, Any]) -> Any:
    """The request and the fields that were given; or the field at fault."""
    try:
        request = parse(model, payload)
    except InvalidRequest as error:
        return error.param
    return request, request.model_fields_set


@pytest.mark.parametrize(
    "null",
    [
        {"messages": [{"role": "user", "content": "x", "name": None}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": None}]}]},
        {"messages": [{"role": "user", "content": "x"}], "stream": True, "stream_options": {"include_usage": None}},
    ],
)
def test_null_is_left_out_inside(null: dict[str, Any]) -> None:
    """So it is in objects inside a request."""
    model = OPERATIONS["chat"].request
    assert parse(model, null).model_dump() == parse(model, _without_null(null)).model_dump()


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_null(item) for name, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, list) else value


def test_null_is_no_excuse_for_an_unknown_field() -> None:
    """A misspelt field is refused whatever it holds."""
    with pytest.raises(InvalidRequest, match=r"^temprature: unknown field$"):
        parse(OPERATIONS["generate"].request, {"prompt": "x", "temprature": None})


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_schema_says_so(operation: str) -> None:
    """In the written schema an optional field is one that may be null, and no other is."""
    model = OPERATIONS[operation].request
    for name, field in model.model_json_schema().get("properties", {}).items():
        if name in model.model_fields:
            assert ({"type": "null"} in field.get("anyOf", [])) is not model.model_fields[name].is_required()
