"""handlers.api.openapi: the description is valid, complete and true."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from app import ROUTES
from handlers.api.openapi import build
from handlers.api.routes import Route
from handlers.operations import OPERATIONS
from handlers.schemas.parsing import parse
from runtime.error_response import ErrorForm, error_body
from runtime.errors import InvalidRequest, ServiceError
from runtime.response_cache.memory import MemoryStore
from tests.support.batches import with_batches
from tests.support.fakes import fake_context

DOCUMENT = json.loads(json.dumps(build(ROUTES, "1.2.3")))

ERRORS: dict[ErrorForm, tuple[str, str]] = {
    "problem": ("application/problem+json", "Problem"),
    "openai": ("application/json", "OpenAIError"),
    "anthropic": ("application/json", "AnthropicError"),
    "ollama": ("application/json", "OllamaError"),
}


def _described(route: Route) -> dict[str, Any]:
    return DOCUMENT["paths"][route.plain_path][route.method.lower()]  # type: ignore[no-any-return]


def _name(route: Route) -> str:
    return f"{route.method} {route.plain_path}"


BODIES = [route for route in ROUTES if "requestBody" in _described(route)]
EXAMPLES = [
    pytest.param(route, example["value"], id=f"{_name(route)} {name}")
    for route in BODIES
    for name, example in _described(route)["requestBody"]["content"]["application/json"].get("examples", {}).items()
]
# Of operations whose fields are known to the fake model only, or that answer with more if asked.
PAYLOADS: dict[str, dict[str, Any]] = {
    "get_response": {"response_id": "resp_id1"},
    "delete_response": {"response_id": "resp_id1"},
    **{key: {"file_id": "file-2"} for key in ("get_file", "file_content", "delete_file")},
    **{key: {"batch_id": "batch_1"} for key in ("get_batch", "cancel_batch")},
    "get_model": {"model": "fake"},
    "load_model": {"model": "fake"},
    "unload_model": {"model": "fake"},
    "default_model": {"model": "fake"},
    "chat": {
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
    },
    "generate": {"prompt": ["x", "y"]},
    "complete": {"prompt": ["x", "y"], "logprobs": 2},
    "completions": {"prompt": ["x", "y"], "logprobs": 2, "stream": True, "stream_options": {"include_usage": True}},
    "compare": {"prompt": "x", "variants": [{"seed": 1}, {"model": "other"}]},
    "responses": {"input": "x", "stream": True, "top_logprobs": 2},
    "messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "stream": True},
}


def _check(value: object, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema | {"components": DOCUMENT["components"]}).validate(value)


def _accepts(value: object, schema: dict[str, Any]) -> bool:
    return jsonschema.Draft202012Validator(schema | {"components": DOCUMENT["components"]}).is_valid(value)


def _body_schema(route: Route) -> dict[str, Any]:
    return _described(route)["requestBody"]["content"]["application/json"]["schema"]  # type: ignore[no-any-return]


def test_document_is_valid() -> None:
    """The document is OpenAPI 3.1."""
    assert DOCUMENT["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert DOCUMENT["info"]["version"] == "1.2.3"


def test_validator_would_find_a_fault() -> None:
    """The check above can fail: without its required parts the document is refused."""
    broken = {key: value for key, value in DOCUMENT.items() if key != "info"}
    assert list(OpenAPIV31SpecValidator(broken).iter_errors())


@pytest.mark.parametrize("route", ROUTES, ids=_name)
def test_every_route_is_described(route: Route) -> None:
    """Every route of every operation is there, with its answer's model and its errors in the shape it speaks."""
    described = _described(route)
    operation = OPERATIONS[route.operation]
    assert described["summary"] == operation.summary
    answer = described["responses"]["200"]["content"]
    if operation.raw:
        assert list(answer) == ["application/octet-stream"]
    else:
        assert answer["application/json"]["schema"]["$ref"].endswith(f"/{operation.response.__name__}")
    kinds = {"text/event-stream"} if operation.stream_form != "lines" else {"application/x-ndjson"}
    assert answer.keys() - {"application/json", "application/octet-stream"} == (kinds if operation.stream else set())
    for status, response in described["responses"].items():
        if status != "200":
            kind, model = ERRORS[route.errors]
            assert response["content"][kind]["schema"]["$ref"].endswith(f"/{model}")


def test_every_operation_is_reachable() -> None:
    """No operation is forgotten over HTTP, and the description mentions each."""
    assert {route.operation for route in ROUTES} == set(OPERATIONS)
    summaries = {op["summary"] for path in DOCUMENT["paths"].values() for op in path.values()}
    assert {operation.summary for operation in OPERATIONS.values()} <= summaries


def test_nothing_else_is_described() -> None:
    """What is described is the routes and the probes, and nothing that does not exist."""
    described = {f"{method.upper()} {path}" for path, item in DOCUMENT["paths"].items() for method in item}
    others = {f"GET /{name}" for name in ("livez", "readyz", "ping", "version", "load", "metrics")} | {"POST /events"}
    assert described == {_name(route) for route in ROUTES} | others


def test_operation_ids_are_unique() -> None:
    """Client generators name functions after them."""
    ids = [op["operationId"] for path in DOCUMENT["paths"].values() for op in path.values()]
    assert len(set(ids)) == len(ids)


def test_everything_is_explained() -> None:
    """Every field of every request has its line of help."""
    schemas = DOCUMENT["components"]["schemas"]
    for operation in OPERATIONS.values():
        for name, field in schemas[operation.request.__name__]["properties"].items():
            assert field.get("description"), f"{operation.request.__name__}.{name}"


def test_unknown_fields_are_forbidden_in_writing() -> None:
    """The description says what the service does: unknown fields are refused."""
    schemas = DOCUMENT["components"]["schemas"]
    for name in ("GenerateRequest", "CompleteRequest", "ChatRequest", "ChatMessage", "TextPart", "StreamOptions"):
        assert schemas[name]["additionalProperties"] is False


def test_there_are_examples() -> None:
    """Every operation that needs a body shows one."""
    needed = {_name(route) for route in BODIES if _described(route)["requestBody"]["required"]}
    assert {_name(param.values[0]) for param in EXAMPLES} == needed  # type: ignore[arg-type]


@pytest.mark.parametrize(("route", "example"), EXAMPLES)
async def test_examples_are_true(route: Route, example: dict[str, Any]) -> None:
    """An example fits its own schema, the handler takes it, and the answer fits its schema."""
    _check(example, _body_schema(route))
    if "model" in example:  # the example's is the default model, the fake one has another name
        example = example | {"model": "fake"}
    answer = await OPERATIONS[route.operation].handle(example, with_batches(fake_context()))
    _check(answer, _described(route)["responses"]["200"]["content"]["application/json"]["schema"])


@pytest.mark.parametrize("route", ROUTES, ids=_name)
async def test_answers_fit_their_schema(route: Route) -> None:
    """Plain answers are what the description says, to the last field; so are the pieces of streams."""
    examples = [param.values[1] for param in EXAMPLES if param.values[0] == route]
    payload = PAYLOADS.get(route.operation) or next(iter(examples), {})  # type: ignore[call-overload]
    operation = OPERATIONS[route.operation]
    ctx = replace(with_batches(fake_context()), responses=MemoryStore(1 << 20, 60, lambda: 0.0))
    await OPERATIONS["responses"].handle({"input": "x"}, ctx)
    _check(
        await operation.handle(payload, ctx),
        {"$ref": f"#/components/schemas/{operation.response.__name__}"},
    )
    if operation.stream is not None and operation.chunk is not None:
        schema = {"$ref": f"#/components/schemas/{operation.chunk.__name__}"}
        async for event in operation.stream(payload, fake_context()):
            _check(event, schema)
        assert operation.chunk.__name__ in DOCUMENT["components"]["schemas"]


@pytest.mark.parametrize("form", ERRORS)
def test_errors_fit_their_schema(form: ErrorForm) -> None:
    """Errors are what the description says, with and without a field at fault."""
    for error in (InvalidRequest("m", param="p"), ServiceError("m")):
        _check(error_body(error, form), {"$ref": f"#/components/schemas/{ERRORS[form][1]}"})


BASES: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "x"}]},
    "compare": {"prompt": "x", "variants": [{}]},
    "responses": {"input": "x"},
    "messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
    "chat_input_tokens": {"messages": [{"role": "user", "content": "x"}]},
    "response_input_tokens": {"input": "x"},
    "count_tokens": {"messages": [{"role": "user", "content": "x"}]},
    "load_model": {},
    "default_model": {"model": "fake"},
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"stop": "s"},
        {"stop": ["s"] * 8},
        {"stop": ["s"] * 9},
        {"stop": []},
        {"stop": [""]},
        {"stop": ""},
        {"stop": "s" * 257},
        {"stop": None},
        {"seed": None},
        {"seed": -(2**63)},
        {"seed": 2**63},
        {"seed": 1.0},
        {"seed": 1.5},
        {"model": ""},
        {"model": None},
        {"temperature": 2},
        {"temperature": 2.1},
        {"temperature": None},
        {"top_p": 0},
        {"top_p": 1},
        {"top_k": -1},
        {"repetition_penalty": 0},
        {"repetition_penalty": 10},
        {"min_p": 1},
        {"min_p": 1.1},
        {"presence_penalty": -2},
        {"frequency_penalty": -2.1},
        {"logit_bias": None},
        {"logit_bias": {}},
        {"logit_bias": {"5": 100}},
        {"logit_bias": {"5": 101}},
        {"logit_bias": {"05": 1}},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {str(i): 1 for i in range(300)}},
        {"logit_bias": {str(i): 1 for i in range(301)}},
        {"logprobs": None},
        {"logprobs": 0},
        {"logprobs": 21},
        {"top_logprobs": None},
        {"top_logprobs": 3},
        {"top_logprobs": 3, "logprobs": False},
        {"top_logprobs": 3, "logprobs": True},
        {"top_logprobs": 21, "logprobs": True},
        {"min_tokens": 0},
        {"min_new_tokens": 0},
        {"min_new_tokens": -1},
        {"stream": 0},
        {"stream": None},
        {"nope": 1},
        {"prompt": "x"},
        {"prompt": ""},
        {"prompt": []},
        {"prompt": ["x", ""]},
        {"prompt": ["x"] * 2048},
        {"prompt": ["x"] * 2049},
        {"prompt": 5},
        {"echo": True},
        {"max_length": 1},
        {"max_new_tokens": None},
        {"n": 1025},
        {"n": 1024},
        {"user": "u" * 257},
        {"messages": []},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "name": "n" * 65}]},
        {"stream_options": {}},
        {"stream_options": {}, "stream": False},
        {"stream_options": {}, "stream": True},
        {"stream_options": {"x": 1}, "stream": True},
        {"stream_options": {"include_obfuscation": False}, "stream": True},
        {"stream_options": {"include_obfuscation": True}, "stream": True},
        {"tools": []},
        {"tools": [{}]},
        {"tool_choice": "none"},
        {"tool_choice": "required"},
        {"tool_choice": "required", "tools": []},
        {"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tools": [{"type": "function", "function": {"name": "f g"}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
        {"thinking_token_budget": -1},
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
        {"messages": [{"role": "tool", "tool_call_id": "1"}]},
        {"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]},
        {"messages": [{"role": "user", "content": "x", "tool_calls": []}]},
        {"messages": [{"role": "user", "content": "x", "reasoning_content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "reasoning_content": ""}]},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        {"store": False},
        {"store": 0},
        {"metadata": {"a": "b"}},
        {"metadata": {"a": 1}},
        {"best_of": 1},
        {"best_of": 1.0},
        {"reasoning_effort": None},
        {"reasoning_effort": "high"},
        {"messages": [{"role": "assistant", "content": None}]},
        {"messages": [{"role": "assistant"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [], "refusal": None}]},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": None}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "", "cache_control": {}}]}]},
        {"model": "m" * 256},
        {"model": "m" * 257},
        {"max_tokens": 0},
        {"best_of": 2},
        {"suffix": None},
        {"suffix": ""},
        {"cache_control": "no-store"},
        {"cache_control": 1},
        {"prompt": None},
        {"messages": None},
        {"prompt": None, "messages": [{"role": "user", "content": "x"}]},
        {"variants": []},
        {"variants": [{}] * 8},
        {"variants": [{}] * 9},
        {"variants": [{"temperature": None, "label": "l" * 64}]},
        {"variants": [{"label": "l" * 65}]},
        {"variants": [{"stop": "x"}]},
        {"variants": [{"top_p": 0}]},
        {"score": None},
        {"input": ""},
        {"input": []},
        {"input": [{"type": "reasoning", "summary": []}]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"input": [{"type": "item_reference", "id": "x"}]},
        {"tools": [{"type": "function", "name": "f", "parameters": {}}]},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"name": "f", "input_schema": {}}]},
        {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "any"}},
        {"tool_choice": {"type": "any"}},
        {"tool_choice": {"type": "auto"}},
        {"tool_choice": {"type": "auto", "name": "f"}},
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}}},
        {"text": {"format": {"type": "grammar"}}},
        {"previous_response_id": "x"},
        {"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        {"system": [{"type": "image"}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}]}]},
        {"thinking": {"type": "disabled"}},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"metadata": {"user_id": "x"}},
        {"score": False},
    ],
    ids=lambda change: json.dumps(change)[:60],
)
def test_schema_and_validation_agree(change: dict[str, Any]) -> None:
    """What the written schema of a body takes, the service takes, and the other way round (numbers written as such)."""
    for route in {route.operation: route for route in BODIES}.values():
        payload = BASES.get(route.operation, {"prompt": "x"}) | change
        try:
            parse(OPERATIONS[route.operation].request, dict.fromkeys(route.fields, "fake") | payload)
            accepted = not payload.keys() & set(route.fields)  # which the path names
        except InvalidRequest:
            accepted = False
        assert _accepts(payload, _body_schema(route)) == accepted, _name(route)


def test_routes_of_one_operation_are_described_alike() -> None:
    """So the test above needs one route of each operation only."""
    schemas: dict[str, list[dict[str, Any]]] = {}
    for route in BODIES:
        schemas.setdefault(route.operation, []).append(_body_schema(route))
    assert len(schemas) < len(BODIES)
    for first, *others in schemas.values():
        assert all(other == first for other in others)


@pytest.mark.parametrize("route", ROUTES, ids=_name)
def test_parameters(route: Route) -> None:
    """Fields of GET and DELETE operations are query parameters; those that a path names are required ones, and stand
    in no body; each with its help. Routes that generate take an idempotency key.
    """
    fields = OPERATIONS[route.operation].request.model_fields
    described = _described(route).get("parameters", [])
    if OPERATIONS[route.operation].generates:
        header = described.pop()
        assert (header["in"], header["name"], header["required"]) == ("header", "Idempotency-Key", False)
        assert {"409", "422"} <= _described(route)["responses"].keys()
    query = [name for name in fields if name not in route.fields] if route.method in ("GET", "DELETE") else []
    assert [(parameter["in"], parameter["name"]) for parameter in described] == [
        *(("path", name) for name in route.fields),
        *(("query", name) for name in query),
    ]
    for parameter in described:
        assert parameter["required"] == (parameter["in"] == "path")
        assert parameter["description"] == fields[parameter["name"]].description
    assert [f"{{{name}}}" in route.plain_path for name in fields] == [name in route.fields for name in fields]
    if route in BODIES and route.fields:
        assert _body_schema(route)["properties"].keys() == fields.keys() - set(route.fields)
        assert not _described(route)["requestBody"]["required"]


@pytest.mark.parametrize("value", ["x", "", "0af", "0AF", "0" * 64, "0" * 65, "m" * 256, "m" * 257, "owner/\u00e9:a b"])
def test_parameters_and_validation_agree(value: str) -> None:
    """What a parameter's schema takes, the service takes, and the other way round."""
    parameters = [
        (route, parameter)
        for route in ROUTES
        for parameter in _described(route).get("parameters", [])
        if parameter["in"] != "header"
    ]
    assert parameters
    for route, parameter in parameters:
        try:
            parse(OPERATIONS[route.operation].request, {parameter["name"]: value})
            accepted = True
        except InvalidRequest:
            accepted = False
        assert _accepts(value, parameter["schema"]) == accepted, (_name(route), parameter["name"])
