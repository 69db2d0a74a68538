"""Envelopes from AWS Lambda events that are messages: SQS, SNS, EventBridge and direct invocations.

Sources: Lambda developer guide, "Using Lambda with Amazon SQS" and "... Amazon SNS"; EventBridge user guide, "Event
structure"; SNS developer guide, "Message and JSON formats", for the messages that SNS sends to SQS.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from runtime.errors import InvalidRequest
from runtime.events.aws_lambda.kinds import is_eventbridge
from runtime.events.envelope import DEADLINE, ID, TRACEPARENT, TYPE_PREFIX, Envelope
from runtime.events.message import read
from runtime.strict_json import loads

_DIRECT = {"id": ID, "deadline": DEADLINE, "traceparent": TRACEPARENT}


def from_sqs(record: Mapping[str, Any]) -> Envelope:
    """Parse an SQS record; a message of SNS or EventBridge that came through the queue is unwrapped.

    Unless the sender gives an id, it is SQS's message id, which is the same in each delivery. A FIFO queue's
    deduplication id is not suitable: it may be the body's hash, and so the same for an equal request on another day.

    Raises:
        InvalidRequest: see ``runtime.events.message.read``.
    """
    attempt = int(record["attributes"]["ApproximateReceiveCount"])
    body = loads(record["body"])
    if isinstance(body, Mapping):
        if body.get("Type") == "Notification" and {"TopicArn", "MessageId", "Message"} <= body.keys():
            return replace(from_sns(body), attempt=attempt)
        if is_eventbridge(body):
            return replace(from_eventbridge(body), attempt=attempt)
    return read(
        record["body"].encode(),
        _attributes(record.get("messageAttributes"), "stringValue"),
        id=record["messageId"],
        source=record["eventSourceARN"],
        operation=None,
        attempt=attempt,
    )


def from_sns(message: Mapping[str, Any]) -> Envelope:
    """Parse an SNS message.

    Args:
        message: the member ``Sns`` of the event's record, or the message that SNS sent to a queue.

    Raises:
        InvalidRequest: see ``runtime.events.message.read``.
    """
    return read(
        message["Message"].encode(),
        _attributes(message.get("MessageAttributes"), "Value"),
        id=message["MessageId"],
        source=message["TopicArn"],
        operation=None,
    )


def from_eventbridge(event: Mapping[str, Any]) -> Envelope:
    """Parse an EventBridge event: its ``detail-type`` names the operation, its ``detail`` is the payload.

    Raises:
        InvalidRequest: the ``detail-type`` names no operation, or a member is invalid.
    """
    event_type, detail = event["detail-type"], event["detail"]
    if not isinstance(event_type, str) or not event_type.startswith(TYPE_PREFIX):
        raise InvalidRequest(
            f"detail-type: it must be {TYPE_PREFIX} and the name of an operation, for example {TYPE_PREFIX}generate",
            param="detail-type",
        )
    operation = event_type.removeprefix(TYPE_PREFIX)
    return read(json.dumps(detail).encode(), {}, id=event["id"], source=event["source"], operation=operation)


def from_direct(event: Mapping[str, Any], request_id: str) -> Envelope:
    """Parse a direct invocation: ``{"operation": ..., "payload": {...}}``.

    ``id``, ``deadline`` and ``traceparent`` are optional members.

    Args:
        event: the event that the function received.
        request_id: the invocation's request id; the same when Lambda retries an asynchronous invocation.

    Raises:
        InvalidRequest: a member is invalid or unknown.
    """
    if unknown := sorted(event.keys() - {"operation", "payload", *_DIRECT}):
        raise InvalidRequest(
            f"{unknown[0]}: unknown member; the known ones are operation, payload, {', '.join(_DIRECT)}"
        )
    headers = {header: str(event[name]) for name, header in _DIRECT.items() if event.get(name) is not None}
    payload = json.dumps(event.get("payload", {})).encode()
    return read(payload, headers, id=request_id, source="lambda", operation=event["operation"])


def _attributes(attributes: Mapping[str, Any] | None, value: str) -> dict[str, str]:
    """Return the text attributes of a message; binary ones are ignored."""
    return {name: given[value] for name, given in (attributes or {}).items() if isinstance(given.get(value), str)}
