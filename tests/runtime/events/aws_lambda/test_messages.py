"""Envelopes from AWS Lambda's events that are messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.errors import InvalidRequest
from runtime.events.aws_lambda.messages import from_direct, from_eventbridge, from_sns, from_sqs
from runtime.events.envelope import Envelope
from tests.support.lambda_events import load

TOPIC = "arn:aws:sns:eu-central-1:123456789012:warmstart"
QUEUE = "arn:aws:sqs:eu-central-1:123456789012:warmstart"
COMPLETE = {"prompt": "The sky is", "max_new_tokens": 4, "temperature": 0}


def _envelope(id: str, source: str, operation: str, data: dict[str, Any], **more: Any) -> Envelope:
    return Envelope(id, source, f"warmstart.{operation}", operation, data, **more)


def test_sqs() -> None:
    """The queue is the source; the attributes are headers, and what is binary among them is none."""
    first, _, third = map(from_sqs, load("sqs_standard")["Records"][::2] + load("sqs_dead_letter_queue")["Records"])
    data = {"prompt": "Once upon a time", "max_new_tokens": 4, "seed": 7}
    assert first == _envelope("order-1", QUEUE, "generate", data)
    assert (third.source, third.attempt) == (f"{QUEUE}-dead", 2)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    second = from_sqs(load("sqs_standard")["Records"][2])
    assert second == _envelope(second.id, QUEUE, "complete", COMPLETE, attempt=3, traceparent=trace)
    assert second.id == load("sqs_standard")["Records"][2]["messageId"]


def test_sqs_fifo_goes_by_the_messages_own_id() -> None:
    """Its deduplication id may be the body's digest, and then says nothing of whether it is the same work."""
    record = load("sqs_fifo")["Records"][0]
    assert from_sqs(record).id == record["messageId"]


def test_what_came_through_a_queue() -> None:
    """Is known by the id that it had before, so that a copy that SNS delivered twice is one."""
    (record,) = load("sqs_from_sns")["Records"]
    record["attributes"]["ApproximateReceiveCount"] = "4"
    assert from_sqs(record) == _envelope("d88d4479-6ec0-54fe-b63f-1cf9df4bb16e", TOPIC, "complete", COMPLETE, attempt=4)
    (record,) = load("sqs_from_eventbridge")["Records"]
    assert from_sqs(record) == from_eventbridge(load("eventbridge"))


def test_sns() -> None:
    """The topic is the source."""
    message = load("sns")["Records"][0]["Sns"]
    assert from_sns(message) == _envelope(
        message["MessageId"], TOPIC, "generate", {"prompt": "Once upon a time", "max_new_tokens": 4, "seed": 7}
    )


def test_eventbridge() -> None:
    """The detail type names the operation."""
    event = load("eventbridge")
    assert from_eventbridge(event) == _envelope(event["id"], "com.example.shop", "complete", COMPLETE)
    with pytest.raises(InvalidRequest, match=r"warmstart\.generate") as caught:
        from_eventbridge(load("eventbridge_schedule"))
    assert caught.value.param == "detail-type"
    with pytest.raises(InvalidRequest, match="JSON object"):
        from_eventbridge(event | {"detail": "{}"})


def test_direct() -> None:
    """An id of one's own goes before the invocation's; what is not known is refused."""
    assert from_direct(load("direct"), "request") == _envelope("request", "lambda", "complete", COMPLETE)
    event = {"operation": "health", "id": 5, "deadline": 1.5e9, "traceparent": "00-x"}
    assert from_direct(event, "request") == _envelope("5", "lambda", "health", {}, deadline=1.5e9, traceparent="00-x")
    with pytest.raises(InvalidRequest, match="stream: unknown"):
        from_direct({"operation": "health", "stream": True}, "request")


@pytest.mark.parametrize("body", ["", "{", "[]", "Test message.", '{"a": NaN}', json.dumps({"Type": "Notification"})])
def test_bodies_that_hold_no_work(body: str) -> None:
    """Are refused as everywhere."""
    record = load("sqs_fifo")["Records"][0] | {"body": body}
    if body.startswith('{"Type"'):  # no notification, and so somebody's payload
        assert from_sqs(record).data == {"Type": "Notification"}
        return
    with pytest.raises(InvalidRequest):
        from_sqs(record)
