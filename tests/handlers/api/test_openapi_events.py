"""handlers.api.openapi_events: what is said of /events is what its events and answers are."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from cloudevents.http import CloudEvent

from app import ROUTES
from handlers.api.openapi import build
from handlers.operations import OPERATIONS
from runtime.events.cloudevents.attributes import MAX_ATTRIBUTE_CHARS
from runtime.events.cloudevents.parse import BATCH, MAX_BATCH_EVENTS, STRUCTURED
from runtime.events.envelope import TYPE_PREFIX

DOCUMENT = json.loads(json.dumps(build(ROUTES, "1.2.3")))
DESCRIBED = DOCUMENT["paths"]["/events"]["post"]
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/here",
    "type": "warmstart.generate",
    "data": {"prompt": "Hi"},
}


def accepts(value: Any, kind: str = STRUCTURED) -> bool:
    """Whether it is described as a good body."""
    schema = DESCRIBED["requestBody"]["content"][kind]["schema"]
    return jsonschema.Draft202012Validator(schema | {"components": DOCUMENT["components"]}).is_valid(value)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"subject": None},
        {"ext": 1, "other": True},
        {"datacontenttype": "application/json"},
        {"id": "é" * MAX_ATTRIBUTE_CHARS},
    ],
)
def test_good_events(more: dict[str, Any]) -> None:
    """One, and a batch of it."""
    assert accepts(EVENT | more)
    assert accepts([EVENT | more] * MAX_BATCH_EVENTS, BATCH)
    assert not accepts([EVENT | more] * (MAX_BATCH_EVENTS + 1), BATCH)


@pytest.mark.parametrize(
    "more",
    [
        {"specversion": "0.3"},
        {"id": ""},
        {"id": "a\nb"},
        {"source": 1},
        {"type": "warmstart.nothing"},
        {"type": "warmstart.load_model"},
        {"data": {}},
        {"data": {"prompt": "Hi", "nothing": 1}},
        {"data": None},
        {"type": "warmstart.chat"},
        {"Ext": 1},
        {"ext": 1.5},
        {"ext": 2**31},
        {"ext": "x" * (MAX_ATTRIBUTE_CHARS + 1)},
    ],
)
def test_bad_events(more: dict[str, Any]) -> None:
    """The description tells what is wrong with them, as the service does."""
    assert not accepts(EVENT | more)


def test_every_operation_has_its_type() -> None:
    """All that events may call by default, and only those."""
    types = DOCUMENT["components"]["schemas"]["Event"]["properties"]["type"]["enum"]
    assert types == [TYPE_PREFIX + name for name, operation in OPERATIONS.items() if not operation.admin]
    assert accepts({name: value for name, value in EVENT.items() if name != "data"} | {"type": "warmstart.health"})


def test_names_are_those_of_the_service() -> None:
    """Media types, which the description spells out so that a start need not know the format."""
    assert (
        set(DESCRIBED["requestBody"]["content"]) == set(DESCRIBED["responses"]["200"]["content"]) == {STRUCTURED, BATCH}
    )
    attributes = dict(CloudEvent({"type": "t", "source": "s"}).get_attributes())
    assert set(attributes) <= set(DOCUMENT["components"]["schemas"]["EventAnswer"]["properties"])
