"""handlers.openapi: the description is valid, complete and true."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from app import ROUTES
from handlers import OPERATIONS
from handlers.openapi import Route, build
from handlers.schemas.parsing import parse
from runtime.errors import InvalidRequest, ServiceError
from tests.fakes import fake_context

DOCUMENT = json.loads(json.dumps(build(ROUTES, "1.2.3")))
POSTS = [route for route in ROUTES if route.method == "POST"]
EXAMPLES = [
    pytest.param(route, example["value"], id=f"{route.path} {name}")
    for route in POSTS
    for name, example in DOCUMENT["paths"][route.path]["post"]["requestBody"]["content"]["application/json"][
        "examples"
    ].items()
]


def _described(route: Route) -> dict[str, Any]:
    return DOCUMENT["paths"][route.path][route.method.lower()]  # type: ignore[no-any-return]


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


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_every_route_is_described(route: Route) -> None:
    """Every route of every operation is there, with its answer's model and its errors in the shape it speaks."""
    described = _described(route)
    operation = OPERATIONS[route.operation]
    assert described["summary"] == operation.summary
    answer = described["responses"]["200"]["content"]
    assert answer["application/json"]["schema"]["$ref"].endswith(f"/{operation.response.__name__}")
    assert ("text/event-stream" in answer) == (operation.stream is not None)
    for status, response in described["responses"].items():
        if status != "200":
            kind, model = (
                ("application/json", "OpenAIError") if route.openai else ("application/problem+json", "Problem")
            )
            assert response["content"][kind]["schema"]["$ref"].endswith(f"/{model}")


def test_every_operation_is_reachable() -> None:
    """No operation is forgotten over HTTP, and the description mentions each."""
    assert {route.operation for route in ROUTES} == set(OPERATIONS)
    summaries = {op["summary"] for path in DOCUMENT["paths"].values() for op in path.values()}
    assert {operation.summary for operation in OPERATIONS.values()} <= summaries


def test_nothing_else_is_described() -> None:
    """What is described is the routes and the probes, and nothing that does not exist."""
    assert set(DOCUMENT["paths"]) == {route.path for route in ROUTES} | {"/livez", "/readyz", "/metrics"}


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
    """Every operation with a body shows one."""
    assert {param.values[0].path for param in EXAMPLES} == {route.path for route in POSTS}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("route", "example"), EXAMPLES)
async def test_examples_are_true(route: Route, example: dict[str, Any]) -> None:
    """An example fits its own schema, the handler takes it, and the answer fits its schema."""
    _check(example, _body_schema(route))
    answer = await OPERATIONS[route.operation].handle(example, fake_context())
    _check(answer, _described(route)["responses"]["200"]["content"]["application/json"]["schema"])


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
async def test_answers_fit_their_schema(route: Route) -> None:
    """Plain answers are what the description says, to the last field; so are the pieces of streams."""
    payloads: dict[str, dict[str, Any]] = {
        "chat": {
            "messages": [{"role": "user", "content": "x"}],
            "stream_options": {"include_usage": True},
            "logprobs": True,
            "top_logprobs": 2,
        },
        "generate": {"prompt": ["x", "y"]},
        "complete": {"prompt": ["x", "y"], "logprobs": 2},
    }
    examples = [param.values[1] for param in EXAMPLES if param.values[0] == route]
    payload = payloads.get(route.operation) or next(iter(examples), {})  # type: ignore[call-overload]
    operation = OPERATIONS[route.operation]
    _check(
        await operation.handle(payload, fake_context()),
        _described(route)["responses"]["200"]["content"]["application/json"]["schema"],
    )
    if operation.stream is not None and operation.chunk is not None:
        schema = {"$ref": f"#/components/schemas/{operation.chunk.__name__}"}
        async for event in operation.stream(payload, fake_context()):
            _check(event, schema)
        assert operation.chunk.__name__ in DOCUMENT["components"]["schemas"]


@pytest.mark.parametrize("openai", [False, True])
def test_errors_fit_their_schema(openai: bool) -> None:
    """Errors are what the description says, with and without a field at fault."""
    for error in (InvalidRequest("m", param="p"), ServiceError("m")):
        value = error.openai() if openai else error.problem()
        _check(value, {"$ref": f"#/components/schemas/{'OpenAIError' if openai else 'Problem'}"})


@pytest.mark.parametrize("route", POSTS, ids=lambda route: route.path)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"stop": "s"},
        {"stop": ["s"] * 8},
        {"stop": ["s"] * 9},
        {"stop": []},
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
        {"prompt": ["x"] * 1024},
        {"prompt": ["x"] * 1025},
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
        {"stream_options": {"x": 1}},
    ],
    ids=lambda change: json.dumps(change)[:60],
)
def test_schema_and_validation_agree(route: Route, change: dict[str, Any]) -> None:
    """What the written schema takes, the service takes, and the other way round (numbers written as such)."""
    base = {"messages": [{"role": "user", "content": "x"}]} if route.operation == "chat" else {"prompt": "x"}
    payload = base | change
    try:
        parse(OPERATIONS[route.operation].request, payload)
        accepted = True
    except InvalidRequest:
        accepted = False
    assert _accepts(payload, _body_schema(route)) == accepted


@pytest.mark.parametrize("route", [r for r in ROUTES if r.method == "GET"], ids=lambda route: route.path)
def test_query_parameters(route: Route) -> None:
    """Fields of GET operations are described as query parameters, each with its help."""
    fields = OPERATIONS[route.operation].request.model_fields
    described = _described(route).get("parameters", [])
    assert [parameter["name"] for parameter in described] == list(fields)
    for parameter in described:
        assert parameter["in"] == "query"
        assert parameter["description"] == fields[parameter["name"]].description
