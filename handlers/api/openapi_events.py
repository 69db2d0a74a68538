"""Describes ``POST /events`` for the OpenAPI document: CloudEvents whose data has the operations' models."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from handlers.operations import OPERATIONS, Operation
from runtime.events.envelope import TYPE_PREFIX

_STRUCTURED = "application/cloudevents+json"
_BATCH = "application/cloudevents-batch+json"
_CHARACTERS = r"^[^\u0000-\u001f\u007f-\u009f\ufdd0-\ufdef\ufffe\uffff]*$"  # CloudEvents, "Type System"
_TEXT = {"type": "string", "minLength": 1, "maxLength": 1024, "pattern": _CHARACTERS}
_EXTENSION = {
    "type": ["string", "boolean", "integer", "null"],
    "maxLength": 1024,
    "pattern": _CHARACTERS,
    "minimum": -(2**31),
    "maximum": 2**31 - 1,
}
_DESCRIPTION = """\
Accepts all content modes of CloudEvents 1.0 over HTTP: structured and batched as below, or binary, with the attributes
in `ce-` headers and the data as the body (`application/json`). The response has the same mode: an event of type
`<type>.result` with the operation's response as its data, or `<type>.error` with OpenAI's error object; its
`causationid` is the id of the request's event. An event with the same `source` and `id` gets the same response again.
The type names the operation, such as `warmstart.generate`; an event of another type names the operation in the
attribute `warmstartoperation`. An event is rejected after its `expirytime` (RFC 3339).
"""
_STATUSES = {
    400: "The event is not valid, or its data is not valid for the operation.",
    408: "The body did not arrive in time.",
    409: "The same event is in progress; send it again later.",
    413: "The body is too large, or contains too many events.",
    415: "The events are not JSON.",
    422: "The event cannot succeed: unknown operation or model, expired, or its id was used with other data.",
    500: "Internal error; send it again later.",
    504: "The generation took too long; send it again later.",
}


def events_schemas() -> dict[str, Any]:
    """Return the component schemas of a request event (``Event``) and an answer event (``EventAnswer``)."""
    operations = {name: operation for name, operation in OPERATIONS.items() if not operation.admin}
    data, answers = [], [{"$ref": "#/components/schemas/OpenAIError"}]
    for name, operation in operations.items():
        data.append(
            {
                "required": ["type", *([] if _valid_when_empty(operation) else ["data"])],
                "properties": {
                    "type": {"const": TYPE_PREFIX + name},
                    "data": {"$ref": f"#/components/schemas/{operation.request.__name__}"},
                },
            }
        )
        answers.append({"$ref": f"#/components/schemas/{operation.response.__name__}"})
    required = ["specversion", "id", "source", "type"]
    return {
        "Event": {
            "type": "object",
            "description": "A CloudEvent that requests an operation.",
            "required": required,
            "properties": {
                "specversion": {"const": "1.0"},
                "id": _TEXT,
                "source": _TEXT | {"description": "A URI reference; source and id together identify the event."},
                "type": {"enum": [TYPE_PREFIX + name for name in operations]},
                "subject": _TEXT | {"type": ["string", "null"]},
                "time": {"type": ["string", "null"], "format": "date-time"},
                "datacontenttype": {"enum": ["application/json", None]},
                "data": {"type": "object", "description": "The request, as the operation's route accepts it."},
            },
            "propertyNames": {"pattern": "^[a-z0-9]{1,64}$"},
            "additionalProperties": _EXTENSION,
            "anyOf": data,
        },
        "EventAnswer": {
            "type": "object",
            "description": "A CloudEvent with the result of another.",
            "required": [*required, "time", "datacontenttype", "causationid", "data"],
            "properties": {
                "specversion": {"const": "1.0"},
                "id": {"type": "string"},
                "source": {"type": "string"},
                "type": {"type": "string", "pattern": r"\.(result|error)$"},
                "time": {"type": "string", "format": "date-time"},
                "datacontenttype": {"const": "application/json"},
                "causationid": {"type": "string", "description": "The id of the request's event."},
                "traceparent": {"type": "string"},
                "data": {"anyOf": answers},
            },
            "additionalProperties": False,
        },
    }


def events_path(errors: dict[int, str]) -> dict[str, Any]:
    """Return the path item of ``/events``.

    Args:
        errors: descriptions of the errors that every route has, by status.
    """
    event, answer = ({"$ref": f"#/components/schemas/{name}"} for name in ("Event", "EventAnswer"))
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        "post": {
            "operationId": "events",
            "summary": "Process CloudEvents that an event router pushes.",
            "description": _DESCRIPTION,
            "tags": ["Events"],
            "requestBody": {
                "required": True,
                "content": {
                    _STRUCTURED: {"schema": event},
                    _BATCH: {"schema": {"type": "array", "maxItems": 100, "items": event}},
                },
            },
            "responses": {
                "200": {
                    "description": "All events were processed; in a batch, the result of a rejected event is an error.",
                    "content": {
                        _STRUCTURED: {"schema": answer},
                        _BATCH: {"schema": {"type": "array", "items": answer}},
                    },
                }
            }
            | {
                str(status): {"description": text, "content": problem | {_STRUCTURED: {"schema": answer}}}
                for status, text in sorted((errors | _STATUSES).items())
            },
        }
    }


def _valid_when_empty(operation: Operation) -> bool:
    """Whether a request without fields is valid."""
    try:
        operation.request.model_validate({})
    except ValidationError:
        return False
    return True
