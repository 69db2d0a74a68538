"""Envelopes from AWS Lambda's events that are messages: SQS, SNS, EventBridge, and direct invocations.

Sources: Lambda developer guide, "Using Lambda with Amazon SQS" and "... Amazon SNS"; EventBridge user guide, "Event
structure"; SNS developer guide, "Message and JSON formats", for what SNS puts into SQS.
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
    """The envelope of a queue's record. A message of SNS or EventBridge that came through the queue is unwrapped.

    Its id is SQS's own, which is the same at each delivery, unless the sender gives one. A FIFO queue's deduplication
    id would not do: it may be the body's digest, and so the same for what is asked anew on another day.

    Raises:
        InvalidRequest: see ``envelope.read``.
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
    """The envelope of a topic's message.

    Args:
        message: the member ``Sns`` of the event's record, or what SNS put into a queue.

    Raises:
        InvalidRequest: see ``envelope.read``.
    """
    return read(
        message["Message"].encode(),
        _attributes(message.get("MessageAttributes"), "Value"),
        id=message["MessageId"],
        source=message["TopicArn"],
        operation=None,
    )


def from_eventbridge(event: Mapping[str, Any]) -> Envelope:
    """The envelope of an event whose ``detail-type`` names the operation and whose ``detail`` is the payload.

    Raises:
        InvalidRequest: it is another, or a member is wrong.
    """
    named, detail = event["detail-type"], event["detail"]
    if not isinstance(named, str) or not named.startswith(TYPE_PREFIX):
        raise InvalidRequest(f"detail-type: expected such as {TYPE_PREFIX}generate", param="detail-type")
    operation = named.removeprefix(TYPE_PREFIX)
    return read(json.dumps(detail).encode(), {}, id=event["id"], source=event["source"], operation=operation)


def from_direct(event: Mapping[str, Any], request_id: str) -> Envelope:
    """The envelope of ``{"operation": ..., "payload": {...}}``, perhaps with ``id``, ``deadline``, ``traceparent``.

    Args:
        event: as the function got it.
        request_id: of the invocation; the same when Lambda repeats one that nobody waits for.

    Raises:
        InvalidRequest: a member is wrong, or not known.
    """
    if unknown := sorted(event.keys() - {"operation", "payload", *_DIRECT}):
        raise InvalidRequest(f"{unknown[0]}: unknown; there are operation, payload, {', '.join(_DIRECT)}")
    headers = {header: str(event[name]) for name, header in _DIRECT.items() if event.get(name) is not None}
    payload = json.dumps(event.get("payload", {})).encode()
    return read(payload, headers, id=request_id, source="lambda", operation=event["operation"])


def _attributes(found: Mapping[str, Any] | None, value: str) -> dict[str, str]:
    """Attributes that are text; what is bytes is nothing of ours."""
    return {name: given[value] for name, given in (found or {}).items() if isinstance(given.get(value), str)}
