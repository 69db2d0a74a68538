"""CloudEvents 1.0: from a request or a message to events, and from an event to its work.

What becomes of them is in ``cloudevents_http``. Sources: CloudEvents 1.0.2 with its JSON format and its HTTP, NATS,
Kafka and AMQP bindings; the extensions Distributed Tracing (``traceparent``) and Expiry Time (``expirytime``).
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from cloudevents.http import CloudEvent

from runtime.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from runtime.events.cloudevents.attributes import (
    NO_TIME,
    check_charset,
    checked,
    media_type,
    percent_decoded,
    plain_id,
    timestamp,
)
from runtime.events.envelope import TYPE_PREFIX, Envelope
from runtime.strict_json import DEPTH, loads

Mode = Literal["binary", "structured", "batch"]

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
OPERATION = "warmstartoperation"
"""Extension attribute that names the operation of an event whose type is its sender's own."""

MOST_IN_BATCH = 100

_PREFIXES = ("ce-", "ce_", "cloudevents:", "cloudevents_")  # of headers in HTTP and NATS, in Kafka, and two in AMQP


def parse(headers: Iterable[tuple[str, str]], body: bytes, max_depth: int = DEPTH) -> tuple[Mode, list[CloudEvent]]:
    """The events of an HTTP request, and how it holds them; the content type tells (HTTP binding section 3).

    Args:
        headers: names in any case, and values.
        body: of the request.
        max_depth: of JSON in it.

    Raises:
        InvalidRequest: names the attribute that is wrong or missing.
        PayloadTooLarge: a batch holds more than ``MOST_IN_BATCH``.
        UnsupportedMediaType: another format of events than JSON.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        name = name.lower()
        if name in found and (name.startswith("ce-") or name == "content-type"):
            raise InvalidRequest(f"{name}: it is there twice", param=name.removeprefix("ce-"))
        found[name] = value
    kind = _format(found)
    if kind == STRUCTURED:
        return "structured", [_event(loads(body, max_depth))]
    if kind == BATCH:
        batch = loads(body, max_depth)
        if not isinstance(batch, list):
            raise InvalidRequest("a batch is a JSON array of events")
        if len(batch) > MOST_IN_BATCH:
            raise PayloadTooLarge(f"{len(batch)} events in a batch; send {MOST_IN_BATCH} at most")
        return "batch", [_event(value, f"{number}.") for number, value in enumerate(batch)]
    if not any(name.startswith("ce-") for name in found):
        raise InvalidRequest(
            f"no event: send {STRUCTURED} or {BATCH}, or headers ce-specversion, ce-id, ce-source and ce-type",
            param="specversion",
        )
    return "binary", [_binary(found, "ce-", body)]


def from_message(
    body: bytes,
    headers: Mapping[str, str],
    *,
    operation: str | None = None,
    attempt: int = 1,
    reply_to: str | None = None,
    stream: bool = False,
) -> Envelope | None:
    """The work of a message that is a CloudEvent, structured or binary, as its broker's binding has it; else None.

    Args:
        body: of the message.
        headers: names in any case, and values.
        operation: of events that name none.
        attempt: how often it was delivered.
        reply_to: where its sender wants the answer.
        stream: whether it wants the tokens as they come.

    Raises:
        InvalidRequest: as ``parse`` and ``envelope`` do.
        UnsupportedMediaType: likewise.
    """
    found = {name.lower(): value for name, value in headers.items()}
    kind = _format(found)
    if kind == BATCH:
        raise InvalidRequest("one event a message; batches are for HTTP")
    if kind == STRUCTURED:
        event = _event(loads(body))
    else:
        prefix = next((prefix for prefix in _PREFIXES if prefix + "specversion" in found), None)
        if prefix is None:
            return None
        event = _binary(found, prefix, body)
    return envelope(event, operation=operation, attempt=attempt, reply_to=reply_to, stream=stream)


def envelope(
    event: CloudEvent,
    *,
    operation: str | None = None,
    traceparent: str | None = None,
    attempt: int = 1,
    reply_to: str | None = None,
    stream: bool = False,
    max_depth: int = DEPTH,
) -> Envelope:
    """The work that an event asks for.

    Args:
        event: from ``parse``.
        operation: of an event that names none.
        traceparent: of the transport, which goes before the event's own.
        attempt: how often it was delivered.
        reply_to: where its sender wants the answer.
        stream: whether it wants the tokens as they come.
        max_depth: of JSON in it.

    Raises:
        InvalidRequest: it names no operation, its data is no JSON object, or an attribute is not what it is here.
        UnsupportedMediaType: its data is said not to be JSON.
    """
    kind: str = event["type"]
    named = event.get(OPERATION) or (kind.removeprefix(TYPE_PREFIX) if kind.startswith(TYPE_PREFIX) else operation)
    if not named:
        raise InvalidRequest(
            f"type: {TYPE_PREFIX} and the name of an operation; or name one in the attribute {OPERATION}", param="type"
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
    """The media type, if it is one of CloudEvents; None for binary mode."""
    text = headers.get("content-type", "")
    kind = media_type(text)
    if not kind.startswith("application/cloudevents"):
        return None
    if kind not in (STRUCTURED, BATCH):
        raise UnsupportedMediaType(f"events are read as {STRUCTURED} and {BATCH}, not {kind[:100]!r}")
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
    return CloudEvent(checked(attributes, prefix), body or None)


def _event(value: Any, where: str = "") -> CloudEvent:
    """One event of the JSON format.

    Args:
        value: decoded.
        where: see ``checked``.
    """
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where[:-1]}: an event is a JSON object" if where else "an event is a JSON object")
    if "data" in value and "data_base64" in value:
        raise InvalidRequest(f"{where}data: there is data_base64, too", param=f"{where}data")
    attributes = {name: given for name, given in value.items() if given is not None}
    data, base64 = attributes.pop("data", None), attributes.pop("data_base64", None)
    if "data" in value and data is None:
        data = b"null"  # which is data, unlike none (JSON format section 3.1.1)
    if base64 is not None:
        try:
            data = b64decode(base64, validate=True)
        except (ValueError, TypeError):
            raise InvalidRequest(f"{where}data_base64: not base64", param=f"{where}data_base64") from None
    return CloudEvent(checked(attributes, where), data)


def _payload(event: CloudEvent, max_depth: int) -> dict[str, Any]:
    data = event.get_data()
    if data is None:  # as operations have it that need nothing
        return {}
    text: str = event.get("datacontenttype") or "application/json"
    kind = media_type(text)
    if not kind.endswith(("/json", "+json")):
        raise UnsupportedMediaType(
            f"datacontenttype: send application/json, not {kind[:100]!r}", param="datacontenttype"
        )
    if isinstance(data, bytes):
        check_charset(text)
        data = loads(data, max_depth)
    if not isinstance(data, dict):
        raise InvalidRequest("data: must be a JSON object", param="data")
    return data
