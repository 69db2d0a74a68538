"""Describes ``POST /events`` for the OpenAPI document: CloudEvents whose data has the operations' models."""

from __future__ import annotations

from typing import Any

from handlers.operations import OPERATIONS
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
In any content mode of CloudEvents 1.0 over HTTP: structured and batched as below, or binary, which is attributes in
`ce-` headers and the data, `application/json`, as the body. The answer comes in the same mode: an event of type
`<type>.result` whose data is the operation's answer, or `<type>.error` with OpenAI's error object, and whose
`causationid` is the event's id. The same `source` and `id` again: the same answer. The type names the operation,
`warmstart.generate`; an event with a type of its own names it in the attribute `warmstartoperation`. After `expirytime`
(RFC 3339) it is not worked on.
"""
_STATUSES = {
    400: "It is no event, or its data breaks a rule of the operation.",
    408: "The body did not arrive in time.",
    409: "The same event is being worked on: send it again later.",
    413: "The body is too large, or has too many events.",
    415: "The events are not JSON.",
    422: "It never can be worked on: no such operation or model, its time is over, or its id came with other data.",
    500: "A fault of ours: send it again later.",
    504: "The generation took too long: send it again later.",
}


def events_schemas() -> dict[str, Any]:
    """Return the component schemas of a request event (``Event``) and an answer event (``EventAnswer``)."""
    operations = {name: operation for name, operation in OPERATIONS.items() if not operation.admin}
    data, answers = [], [{"$ref": "#/components/schemas/OpenAIError"}]
    for name, operation in operations.items():
        needed = operation.request.model_json_schema().get("required", [])
        data.append(
            {
                "required": ["type", *(["data"] if needed else [])],
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
            "description": "A CloudEvent that asks for an operation.",
            "required": required,
            "properties": {
                "specversion": {"const": "1.0"},
                "id": _TEXT,
                "source": _TEXT | {"description": "A URI reference; id and source together name the work."},
                "type": {"enum": [TYPE_PREFIX + name for name in operations]},
                "subject": _TEXT | {"type": ["string", "null"]},
                "time": {"type": ["string", "null"], "format": "date-time"},
                "datacontenttype": {"enum": ["application/json", None]},
                "data": {"type": "object", "description": "What the operation's own route takes."},
            },
            "propertyNames": {"pattern": "^[a-z0-9]{1,64}$"},
            "additionalProperties": _EXTENSION,
            "anyOf": data,
        },
        "EventAnswer": {
            "type": "object",
            "description": "A CloudEvent that answers another.",
            "required": [*required, "time", "datacontenttype", "causationid", "data"],
            "properties": {
                "specversion": {"const": "1.0"},
                "id": {"type": "string"},
                "source": {"type": "string"},
                "type": {"type": "string", "pattern": r"\.(result|error)$"},
                "time": {"type": "string", "format": "date-time"},
                "datacontenttype": {"const": "application/json"},
                "causationid": {"type": "string", "description": "The id of the event that is answered."},
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
            "summary": "CloudEvents: work that is pushed by a router of events.",
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
                    "description": "All is done; in a batch, an event that is rejected is answered with its error.",
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
