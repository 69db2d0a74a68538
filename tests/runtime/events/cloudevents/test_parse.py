"""runtime.events.cloudevents.parse: events from requests and messages, and their envelopes."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InvalidRequest, PayloadTooLarge, ServiceError, UnsupportedMediaType
from runtime.events.cloudevents.parse import BATCH, MAX_BATCH_EVENTS, STRUCTURED, envelope, from_message, parse
from runtime.events.envelope import Envelope
from tests.support.soak import soak

EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "A234-1234-1234",
    "source": "/mycontext",
    "type": "warmstart.generate",
    "data": {"prompt": "Hi"},
}
MINIMAL = {"specversion": "1.0", "id": "minimal", "type": "io.cloudevents.test", "source": "https://cloudevents.io"}


def structured(event: Any, kind: str = STRUCTURED) -> CloudEvent:
    """The one event of such a request."""
    mode, (found,) = parse([("Content-Type", kind)], json.dumps(event).encode())
    assert mode == "structured"
    return found


def binary(body: bytes = b'{"prompt": "Hi"}', kind: str | None = "application/json", **attributes: str) -> CloudEvent:
    """The one event of such a request."""
    named = {name: str(value) for name, value in EVENT.items() if name != "data"} | attributes
    headers = [(f"Ce-{name.title()}", value) for name, value in named.items()]
    mode, (found,) = parse([*headers, *([("Content-Type", kind)] if kind else [])], body)
    assert mode == "binary"
    return found


WORK = Envelope("A234-1234-1234", "/mycontext", "warmstart.generate", "generate", {"prompt": "Hi"})


@pytest.mark.parametrize("kind", [STRUCTURED, f"{STRUCTURED}; charset=utf-8", f"{STRUCTURED.upper()};charset=UTF-8"])
def test_structured(kind: str) -> None:
    """The content type tells; its letters' case and a charset do not matter."""
    assert envelope(structured(EVENT, kind)) == WORK


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "application/x+json", None])
def test_binary(kind: str | None) -> None:
    """Anything else is binary mode: attributes from headers, data from the body."""
    event = binary(kind=kind)
    assert event.get("datacontenttype") == kind
    assert envelope(event) == WORK


def test_structured_goes_before_headers() -> None:
    """A structured event with ce- headers is the structured one (HTTP binding section 3)."""
    mode, (event,) = parse([("content-type", STRUCTURED), ("ce-id", "2")], json.dumps(EVENT).encode())
    assert (mode, event["id"]) == ("structured", EVENT["id"])


def test_batch() -> None:
    """As many events as there are; what is wrong in one is named by its number."""
    found = parse([("content-type", BATCH)], json.dumps([EVENT, EVENT | {"id": "2"}]).encode())
    assert (found[0], [event["id"] for event in found[1]]) == ("batch", [EVENT["id"], "2"])
    assert parse([("content-type", BATCH)], b"[]") == ("batch", [])
    for batch, complaint in (
        ([EVENT, {**EVENT, "id": ""}], "^1.id: must not be empty"),
        ([3], "^0: an event must be a JSON object"),
        (EVENT, "a batch must be a JSON array"),
    ):
        with pytest.raises(InvalidRequest, match=complaint):
            parse([("content-type", BATCH)], json.dumps(batch).encode())
    with pytest.raises(PayloadTooLarge, match="101 events"):
        parse([("content-type", BATCH)], json.dumps([EVENT] * (MAX_BATCH_EVENTS + 1)).encode())


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"datacontenttype": None, "dataschema": None, "subject": None, "time": None},
        {"datacontenttype": "text/plain", "dataschema": "https://x/y", "subject": "s", "time": "2018-04-05T17:31:00Z"},
        {"time": "2018-04-05T17:31:00.000000000Z"},
        {"time": "2018-04-05T18:31:00+01:00"},
        {"time": "2018-04-05T16:31:00-01:00"},
        {"source": "#fragment"},
        {"extinteger": 10, "extboolean": True, "extstring": "text", "exttimestamp": "2023-03-31T15:12:00Z"},
        {"extbinary": "TWE=", "exturiref": "//authority/path"},
        {"id": "with blanks, ünïcode and 100%"},
    ],
)
def test_events_as_they_may_be(more: dict[str, Any]) -> None:
    """What the CloudEvents project's conformance tests call valid is, and says what it said."""
    given = MINIMAL | more
    event = structured(given)
    assert {name: event[name] for name in event if name != "time" or given.get("time")} == {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in given.items()
        if value is not None
    }


def test_the_package_understands_what_is_read_here() -> None:
    """What the package writes, in either mode, is read here as it was."""
    attributes = {name: value for name, value in EVENT.items() if name != "data"} | {"time": "2018-04-05T17:31:00Z"}
    written = CloudEvent(attributes | {"datacontenttype": "application/json"}, EVENT["data"])
    for make in (to_binary, to_structured):
        headers, body = make(written)
        _, (read,) = parse(headers.items(), body)
        assert dict(read.get_attributes()) == dict(written.get_attributes())
        assert envelope(read) == WORK


def test_operation_by_attribute() -> None:
    """An event with a type of its own names the operation in an attribute, which goes before the type."""
    for kind in ("com.example.asked", "warmstart.chat"):
        found = envelope(structured(EVENT | {"type": kind, "warmstartoperation": "generate"}))
        assert (found.type, found.operation) == (kind, "generate")
    assert envelope(structured(EVENT | {"type": "com.example.asked"}), operation="chat").operation == "chat"
    for kind in ("com.example.asked", "warmstart.", "warmstart"):
        with pytest.raises(InvalidRequest, match=r"^type: ") as caught:
            envelope(structured(EVENT | {"type": kind}))
        assert caught.value.param == "type"


def test_extensions() -> None:
    """Trace and deadline come from the event; a trace of the transport goes before it."""
    event = structured(EVENT | {"traceparent": "own", "expirytime": "1970-01-01T00:01:00Z"})
    assert envelope(event).deadline == 60
    assert envelope(event).traceparent == "own"
    assert envelope(event, traceparent="transport").traceparent == "transport"
    with pytest.raises(InvalidRequest, match=r"^expirytime: ") as caught:
        envelope(structured(EVENT | {"expirytime": "soon"}))
    assert caught.value.param == "expirytime"


@pytest.mark.parametrize(
    "event",
    [
        {"data_base64": base64.b64encode(b'{"prompt": "Hi"}').decode()},
        {"data_base64": base64.b64encode(b'{"prompt": "Hi"}').decode(), "datacontenttype": "application/json"},
        {"data": {"prompt": "Hi"}, "datacontenttype": "application/vnd.x+json; charset=utf-8"},
    ],
)
def test_data(event: dict[str, Any]) -> None:
    """As JSON, or as JSON in base64."""
    rest = {name: value for name, value in EVENT.items() if name != "data"}
    assert envelope(structured(rest | event)).data == {"prompt": "Hi"}


def test_no_data() -> None:
    """An event without data has the payload of an operation that needs none."""
    rest = {name: value for name, value in EVENT.items() if name != "data"} | {"type": "warmstart.health"}
    assert envelope(structured(rest)).data == {}
    assert envelope(binary(b"")).data == {}


@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        ({"data": "{}"}, "data: must be a JSON object"),
        ({"data": None}, "data: must be a JSON object"),
        ({"data": [1]}, "data: must be a JSON object"),
        ({"data_base64": base64.b64encode(b"[1]").decode()}, "data: must be a JSON object"),
        ({"data_base64": base64.b64encode(b"{").decode()}, "the body is not JSON"),
        ({"data_base64": base64.b64encode(b"\xff").decode()}, "the body is not UTF-8"),
        ({"data_base64": base64.b64encode(b'{"a":' * 101 + b"1" + b"}" * 101).decode()}, "nested deeper"),
    ],
)
def test_data_that_is_none(event: dict[str, Any], complaint: str) -> None:
    """It is an event, and its work is refused."""
    rest = {name: value for name, value in EVENT.items() if name != "data"}
    with pytest.raises(InvalidRequest, match=complaint):
        envelope(structured(rest | event))


def test_data_that_is_no_json() -> None:
    """A content type of its data that is not JSON, or not UTF-8, is refused as HTTP refuses one."""
    for event in (
        structured(EVENT | {"data": "Hi", "datacontenttype": "text/plain"}),
        binary(b"Hi", "text/plain"),
        binary(kind="application/json; charset=latin-1"),
    ):
        with pytest.raises(UnsupportedMediaType):
            envelope(event)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "an event must be a JSON object"),
        (b"\xff", "not UTF-8"),
        (b'{"a": NaN}', "NaN"),
        (b'{"data":' * 101 + b"1" + b"}" * 101, "nested deeper"),
        (json.dumps(EVENT | {"data_base64": "e30="}).encode(), "^data: send either data or data_base64"),
        (json.dumps(MINIMAL | {"data_base64": "e30"}).encode(), "^data_base64: must be base64"),
        (json.dumps(MINIMAL | {"data_base64": 1}).encode(), "^data_base64: must be base64"),
        (json.dumps(MINIMAL | {"data_base64": "é"}).encode(), "^data_base64: must be base64"),
        (json.dumps(MINIMAL | {"extensions": {}}).encode(), "^extensions: "),
    ],
)
def test_bodies_that_hold_no_event(body: bytes, complaint: str) -> None:
    """Each is refused with what is wrong."""
    with pytest.raises(InvalidRequest, match=complaint):
        parse([("content-type", STRUCTURED)], body)


def test_requests_that_hold_no_event() -> None:
    """No event at all, half of one, one twice, and formats that are not read."""
    with pytest.raises(InvalidRequest, match=r"^the request has no event; send"):
        parse([("content-type", "application/json")], b"{}")
    with pytest.raises(InvalidRequest, match=r"^ce-source: missing"):
        parse([("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-type", "t")], b"{}")
    with pytest.raises(InvalidRequest, match=r"^ce-id: the header must not occur twice"):
        parse([("ce-id", "1"), ("CE-ID", "1")], b"{}")
    with pytest.raises(InvalidRequest, match=r"^content-type: the header must not occur twice"):
        parse([("content-type", "a/b"), ("Content-Type", "a/b")], b"{}")
    for kind in ("application/cloudevents", "application/cloudevents+avro", "application/cloudevents-batch+protobuf"):
        with pytest.raises(UnsupportedMediaType):
            parse([("content-type", kind)], b"{}")
    with pytest.raises(UnsupportedMediaType, match="UTF-8"):
        parse([("content-type", f"{STRUCTURED}; charset=latin-1")], b"{}")


def test_headers_are_decoded() -> None:
    """Percent signs in them are undone, once."""
    assert binary(subject="Euro%20%E2%82%AC", id="a%2520b")["subject"] == "Euro €"
    assert envelope(binary(id="a%20b")).id == "a%20b"
    assert envelope(binary(id="a%2520b")).id == "a%2520b"
    with pytest.raises(InvalidRequest, match=r"^ce-subject: must be UTF-8"):
        binary(subject="%C0%A0")


@pytest.mark.parametrize("prefix", ["ce-", "ce_", "cloudEvents:", "cloudEvents_"])
def test_messages_in_binary_mode(prefix: str) -> None:
    """As the bindings of NATS, Kafka and AMQP name their headers; what a queue adds is in the envelope."""
    headers = {prefix + name: value for name, value in EVENT.items() if name != "data"}
    headers |= {"content-type": "application/json", "other": "x"}
    found = from_message(b'{"prompt": "Hi"}', headers, attempt=3, reply_to="inbox", stream=True)
    assert found == Envelope(
        WORK.id, WORK.source, WORK.type, "generate", WORK.data, attempt=3, reply_to="inbox", stream=True
    )


def test_messages_values_are_decoded_where_the_binding_says_so() -> None:
    """NATS's are percent-encoded, Kafka's are not; NATS's content type has a header of its own."""
    for prefix, source in (("ce-", "a b"), ("ce_", "a%20b")):
        headers = {prefix + name: value for name, value in EVENT.items() if name != "data"} | {
            prefix + "source": "a%20b",
            prefix + "datacontenttype": "application/json",
        }
        found = from_message(b"{}", headers)
        assert found is not None
        assert found.source == source


def test_messages_in_structured_mode() -> None:
    """By their content type; without a type of ours the worker's own operation is meant."""
    body = json.dumps(EVENT | {"type": "x"}).encode()
    found = from_message(body, {"Content-Type": STRUCTURED}, operation="complete")
    assert found is not None
    assert (found.operation, found.id, found.source) == ("complete", WORK.id, WORK.source)


def test_messages_that_are_none() -> None:
    """Plain ones are no event; a batch and half an event are refused."""
    assert from_message(b"{}", {}) is None
    assert from_message(b"{}", {"content-type": "application/json", "ce-id": "1"}) is None
    with pytest.raises(InvalidRequest, match="a message must have one event"):
        from_message(b"[]", {"content-type": BATCH})
    with pytest.raises(InvalidRequest, match=r"^ce_id: missing"):
        from_message(b"{}", {"ce_specversion": "1.0"})


VALUES = st.sampled_from(
    [
        None,
        True,
        7,
        2**40,
        1.5,
        "",
        "1.0",
        "é",
        "\ud800",
        "a b",
        "e30=",
        [],
        {},
        {"prompt": "Hi"},
        [{}],
        "application/json",
        "text/plain; charset=x",
        "warmstart.chat",
        "2030-01-01T00:00:00Z",
        "x" * 2000,
    ]
)
NAMES = st.sampled_from(
    [*EVENT, "data_base64", "time", "datacontenttype", "expirytime", "warmstartoperation", "subject", "x", "X", "é"]
)
NEARLY = st.dictionaries(NAMES, VALUES, max_size=3).map(lambda changes: EVENT | changes)
BODIES = (
    st.binary(max_size=20)
    | VALUES.map(lambda value: json.dumps(value).encode())
    | NEARLY.map(lambda value: json.dumps(value).encode())
    | st.tuples(NEARLY, NEARLY).map(lambda value: json.dumps(value).encode())
)
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["1.0", "%20", "%ff", '"', "\udc80", "\ud800", "application/json", STRUCTURED, BATCH, "a/b; charset=x"]
)
HEADERS = st.sampled_from([[("content-type", STRUCTURED)], [("content-type", BATCH)]]) | st.lists(
    st.tuples(
        st.sampled_from(["ce-id", "ce-source", "ce-type", "ce-specversion", "ce-time", "ce-", "Content-Type", "ce-É"]),
        TEXTS,
    ),
    max_size=6,
)


def problem(read: Any) -> ServiceError | None:
    """What reading comes to, if not to an end."""
    try:
        read()
    except ServiceError as error:
        return error
    return None


@given(HEADERS, BODIES)
@settings(max_examples=soak(10_000))
def test_anything_is_read_or_refused(headers: list[tuple[str, str]], body: bytes) -> None:
    """Whatever comes, it is events, or an error that is the sender's, in words that can be shown."""
    for read in (
        lambda: [envelope(event) for event in parse(headers, body)[1]],
        lambda: from_message(body, dict(headers)),
    ):
        if (error := problem(read)) is not None:
            assert 400 <= error.status < 500
            error.message.encode()
