"""AWS Lambda: detects the kind of an event, and builds the error of an invocation that fails.

Kinds are recognized by the members that AWS documents for each, never by the absence of a member.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from runtime.errors import InvalidRequest, ServiceError
from runtime.events.envelope import encode

Kind = Literal["v1", "v2", "alb", "sqs", "sns", "eventbridge", "direct"]

_EXPECTED = (
    "the event is of no known kind; expected one of API Gateway (REST or HTTP API), a Function URL, an Application "
    'Load Balancer, SQS, SNS or EventBridge, or {"operation": "generate", "payload": {...}}'
)


class FunctionError(Exception):
    """The error of a failed invocation; Lambda reports the class's name as ``errorType``."""


def function_error(error: ServiceError) -> FunctionError:
    """Return the exception that reports an error to the invoker, or to the function's failure destination.

    ``errorType`` is the name of the error's class, which a state machine can retry or catch, and ``errorMessage`` is
    OpenAI's error object, byte for byte as a queue's answer has it.
    """
    kind: type[FunctionError] = type(type(error).__name__, (FunctionError,), {"__module__": __name__})
    return kind(encode(error.openai()).decode())


def kind_of(event: Any) -> Kind:
    """Return the kind of an event.

    Raises:
        InvalidRequest: the event is of no known kind.
    """
    if not isinstance(event, Mapping):
        raise InvalidRequest(_EXPECTED)
    context, records = event.get("requestContext"), event.get("Records")
    if isinstance(context, Mapping):
        if "elb" in context and "httpMethod" in event:
            return "alb"
        if event.get("version") == "2.0" and "http" in context:
            return "v2"
        if "httpMethod" in event and "path" in event:
            return "v1"
    if isinstance(records, list) and records and all(isinstance(record, Mapping) for record in records):
        if all(record.get("eventSource") == "aws:sqs" for record in records):
            return "sqs"
        if len(records) == 1 and records[0].get("EventSource") == "aws:sns":  # AWS documents exactly one
            return "sns"
    if is_eventbridge(event):
        return "eventbridge"
    if isinstance(event.get("operation"), str):
        return "direct"
    raise InvalidRequest(_EXPECTED)


def is_eventbridge(event: Mapping[str, Any]) -> bool:
    """Return whether it is an EventBridge event, received directly or through a queue."""
    return {"detail-type", "source", "detail", "id"} <= event.keys()
