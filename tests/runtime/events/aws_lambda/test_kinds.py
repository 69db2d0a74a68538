"""Which kind an event of AWS Lambda is, and the error that a function ends with."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InvalidRequest, TooManyRequests
from runtime.events.aws_lambda.http import read_request
from runtime.events.aws_lambda.kinds import FunctionError, function_error, kind_of
from runtime.events.aws_lambda.messages import from_direct, from_eventbridge, from_sns, from_sqs
from tests.support.lambda_events import NAMES, load
from tests.support.soak import soak

UNKNOWN = {"apigw_websocket", "s3"}
KINDS = {"apigw_rest": "v1", "apigw_http_v1": "v1", "apigw_http_v2": "v2", "function_url": "v2"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNKNOWN])
def test_kinds(name: str) -> None:
    """Told by the members that AWS documents."""
    expected = next((kind for start, kind in KINDS.items() if name.startswith(start)), name.partition("_")[0])
    assert kind_of(load(name)) == expected


@pytest.mark.parametrize("name", sorted(UNKNOWN))
def test_unknown_kinds(name: str) -> None:
    """What is not known is told what is."""
    with pytest.raises(InvalidRequest, match="expected one of"):
        kind_of(load(name))


def test_several_sources_in_one_event_are_none() -> None:
    """A record that is not of SQS must not be taken for done."""
    with pytest.raises(InvalidRequest):
        kind_of({"Records": [*load("sqs_standard")["Records"], *load("s3")["Records"]]})
    with pytest.raises(InvalidRequest):
        kind_of({"Records": load("sns")["Records"] * 2})


def test_the_error_that_a_function_ends_with() -> None:
    """The class's name for state machines, OpenAI's error object for people and programs."""
    error = function_error(TooManyRequests("full", retry_after=1))
    assert isinstance(error, FunctionError)
    assert type(error).__name__ == "TooManyRequests"
    assert json.loads(str(error)) == TooManyRequests("full").openai()


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_MEMBERS = sorted({member for name in NAMES for member in load(name)} - {"operation"})


@st.composite
def _damaged(draw: st.DrawFn) -> dict[str, object]:
    """A real event with some members exchanged, at its top or one level below, or gone."""
    event = load(draw(st.sampled_from(NAMES)))
    for _ in range(draw(st.integers(1, 3))):
        place = event
        inner = [value for value in event.values() if isinstance(value, dict) and value]
        if inner and draw(st.booleans()):
            place = draw(st.sampled_from(inner))
        records = event.get("Records")
        if isinstance(records, list) and records and isinstance(records[0], dict) and draw(st.booleans()):
            place = records[0]
        name = draw(st.sampled_from(sorted(place) or _MEMBERS))
        if draw(st.booleans()):
            place.pop(name, None)
        else:
            place[name] = draw(_VALUES)
    return event


@settings(max_examples=soak(1_000))
@given(_damaged() | st.dictionaries(st.sampled_from([*_MEMBERS, "operation"]), _VALUES))
def test_what_can_go_wrong_is_what_is_said(event: dict[str, object]) -> None:
    """However an event is damaged, reading it raises what its readers know how to catch, and nothing else."""
    try:
        kind = kind_of(event)
        if kind == "v1" or kind == "v2" or kind == "alb":
            request = read_request(event, kind)
            _ = request.content_type, request.body()
        elif kind == "sqs":
            for record in event["Records"]:  # type: ignore[attr-defined]
                from_sqs(record)
        elif kind == "sns":
            from_sns(event["Records"][0]["Sns"])  # type: ignore[index]
        elif kind == "eventbridge":
            from_eventbridge(event)
        else:
            from_direct(event, "id")
    except (InvalidRequest, LookupError, TypeError, AttributeError, ValueError):
        pass
