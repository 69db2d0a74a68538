"""CloudEvents 1.0: parses requests and messages into events, and events into envelopes.

``runtime.events.cloudevents.http`` answers the events. Sources: CloudEvents 1.0.2 with its JSON format and its HTTP,
NATS, Kafka and AMQP bindings; the extensions Distributed Tracing (``traceparent``) and Expiry Time (``expirytime``).
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from cloudevents.http import CloudEvent

from runtime.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from runtime.events.cloudevents.attributes import (
    NO_TIME,
    check_attributes,
    check_charset,
    media_type,
    percent_decoded,
    plain_id,
    timestamp,
)
from runtime.events.envelope import TYPE_PREFIX, Envelope
from runtime.strict_json import DEFAULT_MAX_DEPTH, loads

Mode = Literal["binary", "structured", "batch"]

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
OPERATION = "warmstartoperation"
"""The extension attribute that names the operation if the event's type does not."""

MAX_BATCH_EVENTS = 100

_PREFIXES = ("ce-", "ce_", "cloudevents:", "cloudevents_")  # header prefixes of HTTP and NATS, Kafka, AMQP (two)


def parse(
    headers: Iterable[tuple[str, str]], body: bytes, max_depth: int = DEFAULT_MAX_DEPTH
) -> tuple[Mode, list[CloudEvent]]:
    """Parse the events of an HTTP request; the content type tells the content mode (HTTP binding section 3).

    Args:
        headers: the request's headers, with names in any case.
        body: the request's body.
        max_depth: the maximum depth of its JSON.

    Returns:
        The content mode and the events.

    Raises:
        InvalidRequest: an attribute is invalid or missing; the error names it.
        PayloadTooLarge: a batch has more than ``MAX_BATCH_EVENTS`` events.
        UnsupportedMediaType: the events are in another format than JSON.
    """
    fields: dict[str, str] = {}
    for name, value in headers:
        name = name.lower()
        if name in fields and (name.startswith("ce-") or name == "content-type"):
            raise InvalidRequest(f"{name}: the header must not occur twice", param=name.removeprefix("ce-"))
        fields[name] = value
    kind = _format(fields)
    if kind == STRUCTURED:
        return "structured", [_event(loads(body, max_depth))]
    if kind == BATCH:
        batch = loads(body, max_depth)
        if not isinstance(batch, list):
            raise InvalidRequest("a batch must be a JSON array of events")
        if len(batch) > MAX_BATCH_EVENTS:
            raise PayloadTooLarge(f"the batch has {len(batch)} events; send at most {MAX_BATCH_EVENTS}")
        return "batch", [_event(value, f"{number}.") for number, value in enumerate(batch)]
    if not any(name.startswith("ce-") for name in fields):
        raise InvalidRequest(
            f"the request has no event; send {STRUCTURED} or {BATCH}, or headers ce-specversion, ce-id, ce-source and "
            "ce-type",
            param="specversion",
        )
    return "binary", [_binary(fields, "ce-", body)]


def from_message(
    body: bytes,
    headers: Mapping[str, str],
    *,
    operation: str | None = None,
    attempt: int = 1,
    reply_to: str | None = None,
    stream: bool = False,
) -> Envelope | None:
    """Parse a broker's message that is a CloudEvent in structured or binary mode; None if it is no CloudEvent.

    Args:
        body: the message's body.
        headers: the message's headers, with names in any case.
        operation: the operation of events that name none.
        attempt: the number of deliveries so far, including this one.
        reply_to: the sender's reply address.
        stream: whether the sender also wants the tokens as they are generated.

    Raises:
        InvalidRequest: see ``parse`` and ``envelope``; or the message is a batch.
        UnsupportedMediaType: see ``parse`` and ``envelope``.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    kind = _format(fields)
    if kind == BATCH:
        raise InvalidRequest("a message must have one event; batches are supported over HTTP only")
    if kind == STRUCTURED:
        event = _event(loads(body))
    else:
        prefix = next((prefix for prefix in _PREFIXES if prefix + "specversion" in fields), None)
        if prefix is None:
            return None
        event = _binary(fields, prefix, body)
    return envelope(event, operation=operation, attempt=attempt, reply_to=reply_to, stream=stream)


def envelope(
    event: CloudEvent,
    *,
    operation: str | None = None,
    traceparent: str | None = None,
    attempt: int = 1,
    reply_to: str | None = None,
    stream: bool = False,
    max_depth: int = DEFAULT_MAX_DEPTH,
) -> Envelope:
    """Return the envelope of an event.

    Args:
        event: the event, from ``parse``.
        operation: the operation if the event names none.
        traceparent: the transport's trace context, which takes precedence over the event's.
        attempt: the number of deliveries so far, including this one.
        reply_to: the sender's reply address.
        stream: whether the sender also wants the tokens as they are generated.
        max_depth: the maximum depth of JSON in the event's data.

    Raises:
        InvalidRequest: the event names no operation, its data is no JSON object, or an attribute is invalid.
        UnsupportedMediaType: the event's data is not declared as JSON.
    """
    kind: str = event["type"]
    named = event.get(OPERATION) or (kind.removeprefix(TYPE_PREFIX) if kind.startswith(TYPE_PREFIX) else operation)
    if not named:
        raise InvalidRequest(
            f"type: it must be {TYPE_PREFIX} and the name of an operation, unless the attribute {OPERATION} names one",
            param="type",
        )
    deadline = None
    if expiry := event.get("expirytime"):
        deadline = timestamp(expiry)
        if deadline is None:
            raise InvalidRequest(f"expirytime: {NO_TIME}", param="expirytime")
    return Envelope(
        id=plain_id(event["id"]),
        source=event["source"],
        type=kind,
        operation=named,
        data=_payload(event, max_depth),
        traceparent=traceparent or event.get("traceparent"),
        attempt=attempt,
        deadline=deadline,
        reply_to=reply_to,
        stream=stream,
    )


def _format(headers: Mapping[str, str]) -> str | None:
    """Return the media type if it is one of CloudEvents; None for binary mode."""
    text = headers.get("content-type", "")
    kind = media_type(text)
    if not kind.startswith("application/cloudevents"):
        return None
    if kind not in (STRUCTURED, BATCH):
        raise UnsupportedMediaType(f"the content type {kind[:100]!r} is not supported; send {STRUCTURED} or {BATCH}")
    check_charset(text)
    return kind


def _binary(headers: Mapping[str, str], prefix: str, body: bytes) -> CloudEvent:
    attributes = {
        name.removeprefix(prefix): percent_decoded(name, value) if prefix == "ce-" else value
        for name, value in headers.items()
        if name.startswith(prefix)
    }
    if "content-type" in headers:
        attributes.setdefault("datacontenttype", headers["content-type"])
    return CloudEvent(check_attributes(attributes, prefix), body or None)


def _event(value: Any, prefix: str = "") -> CloudEvent:
    """Parse one event in the JSON format.

    Args:
        value: the decoded JSON value.
        prefix: the prefix of names in error messages, see ``check_attributes``.
    """
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"{prefix[:-1]}: an event must be a JSON object" if prefix else "an event must be a JSON object"
        )
    if "data" in value and "data_base64" in value:
        raise InvalidRequest(f"{prefix}data: send either data or data_base64, not both", param=f"{prefix}data")
    attributes = {name: given for name, given in value.items() if given is not None}
    data, base64 = attributes.pop("data", None), attributes.pop("data_base64", None)
    if "data" in value and data is None:
        data = b"null"  # null is data, unlike a missing member (JSON format section 3.1.1)
    if base64 is not None:
        try:
            data = b64decode(base64, validate=True)
        except (ValueError, TypeError):
            raise InvalidRequest(f"{prefix}data_base64: must be base64", param=f"{prefix}data_base64") from None
    return CloudEvent(check_attributes(attributes, prefix), data)


def _payload(event: CloudEvent, max_depth: int) -> dict[str, Any]:
    data = event.get_data()
    if data is None:  # for operations without parameters
        return {}
    text: str = event.get("datacontenttype") or "application/json"
    kind = media_type(text)
    if not kind.endswith(("/json", "+json")):
        raise UnsupportedMediaType(
            f"datacontenttype: send application/json instead of {kind[:100]!r}", param="datacontenttype"
        )
    if isinstance(data, bytes):
        check_charset(text)
        data = loads(data, max_depth)
    if not isinstance(data, dict):
        raise InvalidRequest("data: must be a JSON object", param="data")
    return data
