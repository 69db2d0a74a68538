"""Parsing a message: it becomes an envelope or an InvalidRequest, whatever its bytes and headers are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.errors import InvalidRequest, UnsupportedMediaType
from runtime.events import envelope as names
from runtime.events.envelope import Envelope, encode, to_headers
from runtime.events.message import read
from tests.support.soak import soak

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def of(body: bytes = b"{}", fields: dict[str, str] | None = None, **named: Any) -> Envelope:
    """A message's envelope."""
    return read(body, fields or {}, **{"id": "1", "source": "s", "operation": "generate", **named})


def test_a_bare_payload() -> None:
    """What the broker knows fills what no header says."""
    assert of(b'{"prompt": "x"}', attempt=3) == Envelope(
        "1", "s", "warmstart.generate", "generate", {"prompt": "x"}, attempt=3
    )


def test_a_byte_order_mark() -> None:
    """Is no part of a message, nor of the structured event or the binary one's data that it holds."""
    assert of(b'\xef\xbb\xbf{"prompt": "x"}') == of(b'{"prompt": "x"}')
    event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "warmstart.generate", "data": {"prompt": "x"}}
    structured = {"content-type": "application/cloudevents+json"}
    assert of(b"\xef\xbb\xbf" + json.dumps(event).encode(), structured).data == {"prompt": "x"}
    binary = {"ce-" + name: value for name, value in event.items() if isinstance(value, str)}
    assert of(b'\xef\xbb\xbf{"prompt": "x"}', binary | {"content-type": "application/json"}).data == {"prompt": "x"}


def test_headers_go_first() -> None:
    """In any case of letters."""
    fields = {
        "WARMSTART-ID": "a",
        "warmstart-operation": "chat",
        "Warmstart-Deadline": "1700000000.25",
        "warmstart-reply-to": "_INBOX.1",
        "Warmstart-Stream": "True",
        "Traceparent": TRACE,
        "Other": "x",
    }
    assert of(fields=fields, reply_to="elsewhere") == Envelope(
        "a", "s", "warmstart.chat", "chat", {}, TRACE, 1, 1_700_000_000.25, "_INBOX.1", True
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"Warmstart-Id": ""}, "id"),
        ({"Warmstart-Id": "a b"}, "id"),
        ({"Warmstart-Id": "a\n"}, "id"),
        ({"Warmstart-Id": "é"}, "id"),
        ({"Warmstart-Id": "x" * 257}, "id"),
        ({"Warmstart-Operation": ""}, "operation"),
        ({"Warmstart-Operation": "x" * 65}, "operation"),
        ({"Warmstart-Operation": "generate\n"}, "operation"),
        ({"Warmstart-Deadline": ""}, "deadline"),
        ({"Warmstart-Deadline": "soon"}, "deadline"),
        ({"Warmstart-Deadline": "nan"}, "deadline"),
        ({"Warmstart-Deadline": "inf"}, "deadline"),
        ({"Warmstart-Deadline": "1e9"}, "deadline"),
        ({"Warmstart-Deadline": "9" * 400}, "deadline"),
        ({"Warmstart-Deadline": "\u0661\u0667"}, "deadline"),
        ({"Warmstart-Reply-To": "secrets"}, "reply_to"),
    ],
)
def test_wrong_headers(fields: dict[str, str], param: str) -> None:
    """The error names what is wrong."""
    with pytest.raises(InvalidRequest) as caught:
        of(fields=fields, reply_prefixes=("_INBOX.",))
    assert caught.value.param == param


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"null", b"{", b"\xff", b'{"a": NaN}', b"[" * 200 + b"]" * 200])
def test_wrong_bodies(body: bytes) -> None:
    """Only a JSON object is a payload."""
    with pytest.raises(InvalidRequest):
        of(body)


@pytest.mark.parametrize(
    ("prefixes", "given", "good"),
    [
        (("_INBOX.", "warmstart."), "_INBOX.1", True),
        (("_INBOX.", "warmstart."), "warmstart.answers", True),
        (("_INBOX.", "warmstart."), "$JS.API.STREAM.DELETE.X", False),
        ((), "_INBOX.1", False),
        (None, "anywhere", True),
    ],
)
@pytest.mark.parametrize("way", ["header", "broker"])
def test_answers_go_where_they_may(prefixes: tuple[str, ...] | None, given: str, good: bool, way: str) -> None:
    """A message must not make a worker write anywhere it likes, whichever way it says where."""
    fields, named = ({names.REPLY_TO: given}, {}) if way == "header" else ({}, {"reply_to": given})
    if good:
        assert of(fields=fields, reply_prefixes=prefixes, **named).reply_to == given
    else:
        with pytest.raises(InvalidRequest):
            of(fields=fields, reply_prefixes=prefixes, **named)


def test_answers_never_go_to_the_workers_own_queues() -> None:
    """Even if the allowed prefixes include them, because an answer there would become a new request."""
    allowed: dict[str, Any] = {"reply_prefixes": ("replies.",), "own_prefixes": ("replies.work", "replies.dead")}
    assert of(reply_to="replies.me", **allowed).reply_to == "replies.me"
    for reply_to in ("replies.work", "replies.work.wait", "replies.dead", "other"):
        with pytest.raises(InvalidRequest, match="EVENTS_REPLY_PREFIXES"):
            of(reply_to=reply_to, **allowed)


def test_no_reply_address_needs_no_prefix() -> None:
    """Answers go where they always go."""
    assert of(reply_prefixes=()).reply_to is None
    assert of(reply_prefixes=(), reply_to="").reply_to is None


KNOWN = [value for name in dir(names) if name.isupper() and isinstance(value := getattr(names, name), str)]
TEXTS = st.sampled_from(["1700000000", "true", "generate", "a", "_INBOX.1", "a" * 300])
TEXTS |= st.sampled_from(["1.0", "warmstart.chat", "application/cloudevents+json"]) | st.text(max_size=9)
BODIES = [{"prompt": "x"}, {}, [], None, 1, {"a": {"b": [1, None, "\ud800"]}}, "x", float("inf")]
JSON = st.sampled_from(BODIES).map(lambda value: json.dumps(value).encode())
CLOUD = ["content-type", "ce-specversion", "ce-id", "ce-source", "ce-type"]
NAMES = st.sampled_from([*KNOWN, *map(str.upper, KNOWN), *CLOUD])
FIELDS = st.lists(st.tuples(NAMES, TEXTS), max_size=3).map(dict)


@settings(max_examples=soak(10_000))
@example(b'{"a": ' + b"9" * 5000 + b"}", {}, "1", None, None)
@given(st.binary(max_size=40) | JSON, FIELDS, TEXTS, TEXTS | st.none(), TEXTS | st.none())
def test_any_message(body: bytes, fields: dict[str, str], id: str, operation: str | None, reply_to: str | None) -> None:
    """It is an envelope that can be sent on and read again, or an InvalidRequest; never anything else."""
    prefixes = ("a", "_INBOX.")
    try:
        found = read(body, fields, id=id, source="s", operation=operation, reply_to=reply_to, reply_prefixes=prefixes)
    except (InvalidRequest, UnsupportedMediaType):
        return
    assert found.reply_to is None or found.reply_to.startswith(prefixes)
    assert read(encode(found.data), to_headers(found), id="0", source="s", operation=None).data == found.data


@given(
    st.builds(
        Envelope,
        *[st.from_regex("[!-~]{1,256}", fullmatch=True), st.just("s")],
        **{},
        **{
            "operation": st.sampled_from(["generate", "chat"]),
            "type": st.just(""),
            "data": st.dictionaries(st.text(), st.integers()),
            "deadline": st.none() | st.integers(0, 2**40).map(lambda n: n / 8),
            "reply_to": st.none() | st.text(min_size=1),
            "stream": st.booleans(),
            "traceparent": st.none() | st.just(TRACE),
        },
    )
)
def test_headers_are_read_again(sent: Envelope) -> None:
    """What a submitter sends is what a worker gets."""
    found = read(encode(sent.data), to_headers(sent), id="other", source="s", operation=None)
    assert (found.id, found.operation, found.data) == (sent.id, sent.operation, sent.data)
    assert (found.deadline, found.reply_to, found.stream) == (sent.deadline, sent.reply_to, sent.stream)
    assert (found.traceparent, found.type) == (sent.traceparent, f"warmstart.{sent.operation}")


EVENT = {"specversion": "1.0", "id": "17", "source": "/orders", "type": "warmstart.complete", "data": {"prompt": "x"}}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (json.dumps(EVENT).encode(), {"Content-Type": "application/cloudevents+json; charset=utf-8"}),
        *(
            (b'{"prompt": "x"}', {f"{prefix}{name}": str(EVENT[name]) for name in EVENT if name != "data"})
            for prefix in ("ce-", "ce_", "cloudEvents:", "cloudEvents_")
        ),
    ],
)
def test_cloud_events_are_understood(body: bytes, fields: dict[str, str]) -> None:
    """Structured ones by the content type, binary ones by the headers of NATS's, Kafka's and AMQP's bindings."""
    found = read(body, fields | {names.STREAM: "true"}, id="place", source="queue", operation="generate", attempt=2)
    assert (found.id, found.source, found.operation) == ("/orders#17", "queue", "complete")
    assert (found.data, found.attempt, found.stream) == ({"prompt": "x"}, 2, True)


@given(*[st.tuples(st.text(min_size=1, max_size=4), st.text(min_size=1, max_size=4))] * 2)
@settings(max_examples=soak(2000))
def test_two_cloud_events_never_have_one_id(one: tuple[str, str], other: tuple[str, str]) -> None:
    """Only those whose source and id are the same do."""
    ids = []
    for source, id in (one, other):
        body = json.dumps(EVENT | {"source": source, "id": id}).encode()
        fields = {"content-type": "application/cloudevents+json"}
        try:
            ids.append(read(body, fields, id="place", source="queue", operation=None).id)
        except InvalidRequest:
            return
    assert (ids[0] == ids[1]) == (one == other)
