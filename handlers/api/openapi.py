"""Builds the OpenAPI 3.1 document from the routes, the operations and their models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from handlers.api.openapi_events import events_path, events_schemas
from handlers.api.routes import Route
from handlers.operations import OPERATIONS, Operation, StreamForm
from runtime.error_response import ErrorForm

_REF = "#/components/schemas/{model}"
_PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "required": ["title", "status", "detail", "code"],
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "The error and how to correct it."},
        "code": {"type": "string", "description": "Stable code for programs."},
        "param": {"type": "string", "description": "The invalid field."},
    },
}
_OPENAI_ERROR = {
    "type": "object",
    "description": "OpenAI's error object.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_ANTHROPIC_ERROR = {
    "type": "object",
    "description": "Anthropic's error object.",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}
_OLLAMA_ERROR = {
    "type": "object",
    "description": "Ollama's error.",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
}
_ERRORS = {"problem": "Problem", "openai": "OpenAIError", "anthropic": "AnthropicError", "ollama": "OllamaError"}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, if the service requires one."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key in another header."},
}
_ANY_ERRORS = {
    401: "A valid API key or signature is required.",
    403: "The client's address is not allowed, or its key lacks the scope.",
    429: "This client has sent too many requests, or the queue is full.",
    500: "Internal error.",
    503: "The model is loading or unavailable, or the service is draining.",
}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[!-~]+$"},
    "description": "A later request with the same key and body gets the stored answer, with the header "
    "Idempotency-Replayed: true. Needs IDEMPOTENCY.",
}
_KEY_ERRORS = {
    409: "A request with this Idempotency-Key is in progress.",
    422: "The Idempotency-Key was used with another body.",
}
_PARAMETER_RULES = ("type", "minLength", "maxLength", "pattern", "minimum", "maximum", "enum")
_READ_ERRORS = {400: "The request is invalid; the error names the field."}
_BODY_ERRORS = {
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    504: "The generation took too long.",
}


def _json(name: str, kind: str) -> dict[str, Any]:
    """Describe a JSON object with one member."""
    return {
        "application/json": {"schema": {"type": "object", "required": [name], "properties": {name: {"type": kind}}}}
    }


_STATUS = _json("status", "string")
_EXPOSITION = {kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/openmetrics-text")}


def build(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """Return the OpenAPI document as a dict.

    Args:
        routes: the routes of all operations.
        version: the service's version.
    """
    models = sorted({m for op in OPERATIONS.values() for m in (op.request, op.response, op.chunk) if m}, key=str)
    _, definitions = models_json_schema([(m, "validation") for m in models], ref_template=_REF)
    errors = dict(zip(_ERRORS.values(), (_PROBLEM, _OPENAI_ERROR, _ANTHROPIC_ERROR, _OLLAMA_ERROR), strict=True))
    schemas = definitions["$defs"] | errors | events_schemas()
    paths: dict[str, Any] = {
        f"/{name}": {"get": _probe(name, summary, answers, content)}
        for name, summary, answers, content in (
            (
                "livez",
                "Liveness probe; responds under any load.",
                {200: "The process is alive.", 503: "The engine has failed too often; restart the process."},
                _STATUS,
            ),
            ("readyz", "Readiness probe.", {200: "Ready.", 503: "Loading or draining."}, _STATUS),
            ("ping", "Readiness probe by SageMaker's name.", {200: "Ready.", 503: "Loading or draining."}, _STATUS),
            ("version", "The service's version.", {200: "The version."}, _json("version", "string")),
            ("load", "Number of requests that use a model now.", {200: "The load."}, _json("server_load", "integer")),
            ("metrics", "Prometheus metrics; in OpenMetrics if Accept prefers it.", {200: "All metrics."}, _EXPOSITION),
        )
    }
    for route in routes:
        paths.setdefault(route.plain_path, {})[route.method.lower()] = _operation(route, OPERATIONS[route.operation])
    paths["/events"] = events_path(_ANY_ERRORS)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Warmstart",
            "version": version,
            "description": "Serves small language models. The /v1 routes are compatible with OpenAI's API, "
            "those below /v1/messages with Anthropic's, and those below /api with Ollama's.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "security": [{}, *({name: []} for name in _SECURITY)],
        "components": {"schemas": schemas, "securitySchemes": _SECURITY},
    }


def _operation(route: Route, operation: Operation) -> dict[str, Any]:
    verb = "list" if route.query else "" if route.method in ("GET", "POST") else route.method.lower()
    name = re.sub(r"\W+", "_", f"{verb}{route.plain_path}")
    description: dict[str, Any] = {
        "operationId": name.strip("_"),
        "summary": operation.summary,
        "description": (operation.request.__doc__ or "").strip(),
        "tags": [_tag(route)],
    }
    codes = _ANY_ERRORS | _READ_ERRORS
    fields: dict[str, Any] = operation.request.model_json_schema().get("properties", {})
    parameters = [_parameter(key, fields[key], "path") for key in route.fields]
    if route.method in ("POST", "PUT"):
        codes = codes | _BODY_ERRORS
        if not parameters:
            kinds = ("multipart/form-data", "application/json") if operation.form else ("application/json",)
            description["requestBody"] = {
                "required": True,
                "content": {kind: _content(operation.request) for kind in kinds},
            }
        elif remaining := {key: field for key, field in fields.items() if key not in route.fields}:
            schema = {"type": "object", "properties": remaining, "additionalProperties": False}
            description["requestBody"] = {"required": False, "content": {"application/json": {"schema": schema}}}
    elif fields:
        codes = codes | {404: _BODY_ERRORS[404]}
        parameters += [_parameter(key, field, "query") for key, field in fields.items() if key not in route.fields]
    if operation.generates:
        parameters.append(_IDEMPOTENCY_KEY)
        codes = codes | _KEY_ERRORS
    if parameters:
        description["parameters"] = parameters
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": _REF.format(model=operation.response.__name__)}}}
    if operation.raw:
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    if operation.chunk is not None:
        kind, schema = _stream(operation.stream_form, operation.chunk, route.errors)
        content[kind] = {"schema": schema}
    description["responses"] = {"200": {"description": "The response.", "content": content}} | _errors(
        codes, route.errors
    )
    return description


def _tag(route: Route) -> str:
    if route.errors in ("anthropic", "ollama"):
        return route.errors.capitalize()
    return "OpenAI" if route.path.startswith("/v1/") else "Warmstart"


def _parameter(name: str, field: dict[str, Any], location: str) -> dict[str, Any]:
    """Describe a path or query parameter; the schema is the field's without null, which a query cannot express."""
    (schema,) = (option for option in field.get("anyOf", [field]) if option["type"] != "null")
    return {
        "name": name,
        "in": location,
        "required": location == "path",
        "schema": {key: schema[key] for key in _PARAMETER_RULES if key in schema},
        "description": field["description"],
    }


def _stream(form: StreamForm, chunk: type[BaseModel], errors: ErrorForm) -> tuple[str, dict[str, Any]]:
    """Return the media type of a stream and the schema of one event or line."""
    if form == "lines":
        refs = [{"$ref": _REF.format(model=name)} for name in (chunk.__name__, _ERRORS[errors])]
        return "application/x-ndjson", {"anyOf": refs, "description": "A line; the last has done, or is an error."}
    return "text/event-stream", (_named_event if form == "named" else _event)(chunk, errors)


def _named_event(chunk: type[BaseModel], errors: ErrorForm) -> dict[str, Any]:
    """Describe one server-sent event that has its type as its name, as ``_event`` does."""
    options = [{"$ref": _REF.format(model=chunk.__name__)}]
    if errors == "anthropic":
        options.append({"$ref": _REF.format(model=_ERRORS[errors])})
    return {
        "type": "object",
        "description": f"A server-sent event, if stream is true: a {chunk.__name__} or an error, under its type.",
        "required": ["event", "data"],
        "properties": {
            "event": {"type": "string", "description": "The member type of the data."},
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"anyOf": options},
            },
        },
    }


def _event(chunk: type[BaseModel], errors: ErrorForm) -> dict[str, Any]:
    """Describe one server-sent event as OpenAPI 3.2 does (section 4.14.4); OpenAPI 3.1 defines no form for it."""
    refs = [{"$ref": _REF.format(model=name)} for name in (chunk.__name__, "OpenAIError")]
    return {
        "type": "object",
        "description": f"A server-sent event, if stream is true: a {chunk.__name__}; the last is [DONE] or an error.",
        "required": ["data"],
        "properties": {
            "data": {
                "anyOf": [
                    {"const": "[DONE]"},
                    {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": refs}},
                ]
            }
        },
    }


def _content(model: type[BaseModel]) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": _REF.format(model=model.__name__)}}
    extra = model.model_config.get("json_schema_extra")
    if isinstance(extra, dict) and isinstance(examples := extra.get("examples"), list):
        content["examples"] = {f"example{i}": {"value": value} for i, value in enumerate(examples, 1)}
    return content


def _errors(codes: dict[int, str], form: ErrorForm) -> dict[str, Any]:
    kind = "application/problem+json" if form == "problem" else "application/json"
    content = {kind: {"schema": {"$ref": _REF.format(model=_ERRORS[form])}}}
    return {str(code): {"description": text, "content": content} for code, text in sorted(codes.items())}


def _probe(name: str, summary: str, answers: dict[int, str], content: dict[str, Any]) -> dict[str, Any]:
    responses = {str(code): {"description": text, "content": content} for code, text in answers.items()}
    return {
        "operationId": name,
        "summary": summary,
        "tags": ["Probes"],
        "responses": responses | _errors({code: _ANY_ERRORS[code] for code in (401, 403)}, "problem"),
    }
