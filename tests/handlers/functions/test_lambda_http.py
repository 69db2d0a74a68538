"""A request that comes as an event of AWS Lambda is answered as the HTTP service answers it."""

from __future__ import annotations

import base64
import functools
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

import app
from app import create_app
from handlers.api.routes import ROUTES
from handlers.context import Context
from handlers.lambda_function import Function
from runtime.errors import DeadlineExceeded, ModelLoading, ServiceError, TooManyRequests
from runtime.settings import Settings
from tests.support.fakes import FakeEngine, caching, fake_context
from tests.support.lambda_events import Invocation, load

Client = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]

JSON = {"Content-Type": "application/json"}
TEXT = {"prompt": "x", "seed": 1}
CHAT = {"messages": [{"role": "user", "content": "é😀"}], "seed": 1}
FORMS = ["v1", "v1 multi", "v1 base64", "v2", "v2 base64", "alb", "alb multi"]


@pytest.fixture(scope="module", autouse=True)
def _described_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "build", functools.cache(app.build))
        yield


def _event(form: str, method: str, target: str, headers: dict[str, str], body: bytes | None) -> dict[str, Any]:
    """A request in one of the forms, made of a real event."""
    path, _, query = target.partition("?")
    values = parse_qs(query, keep_blank_values=True)
    text = None if body is None else body.decode("utf-8", "surrogateescape")
    encoded = "base64" in form
    if body is not None and encoded:
        text = base64.b64encode(body).decode()
    content = {"body": text, "isBase64Encoded": encoded}
    if form.startswith("v2"):
        event = load("apigw_http_v2_post")
        del event["cookies"]
        event["requestContext"]["http"] |= {"method": method, "path": path}
        return event | content | {"rawPath": path, "rawQueryString": query, "headers": headers}
    if form.startswith("v1"):
        event = load("apigw_rest_post") | content | {"httpMethod": method, "path": path}
        event["pathParameters"] = {"proxy": unquote(path).removeprefix("/")}
        many = {
            "multiValueHeaders": {name: [value] for name, value in headers.items()},
            "multiValueQueryStringParameters": values or None,
        }
        single = {
            "headers": headers,
            "queryStringParameters": {name: found[-1] for name, found in values.items()} or None,
        }
        none = dict.fromkeys(many)
        return event | single | (none if form == "v1" else many)
    raw: dict[str, list[str]] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        raw.setdefault(name, []).append(value)  # a load balancer decodes nothing
    if form == "alb":
        event = load("alb_post") | {"queryStringParameters": {name: found[-1] for name, found in raw.items()}}
        return event | content | {"httpMethod": method, "path": path, "headers": headers}
    event = load("alb_multi_value") | {"multiValueQueryStringParameters": raw}
    lists = {name: [value] for name, value in headers.items()}
    return event | content | {"httpMethod": method, "path": path, "multiValueHeaders": lists}


def _context(engine: FakeEngine | None = None, **models: Any) -> Context:
    """Whose answers do not differ from one call to the next."""
    return replace(fake_context(engine or FakeEngine(), **models), new_id=lambda: "id1")


ASKED: list[tuple[str, str, dict[str, str], bytes | None]] = [
    *(("GET", route.path, {}, None) for route in ROUTES if route.method == "GET"),
    ("HEAD", "/health", {}, None),
    ("GET", "/model-info?model=fake", {}, None),
    ("GET", "/model-info?model=fa%6Be", {}, None),
    ("GET", "/model-info?model=a+b%2Fc%26d", {}, None),
    ("GET", "/model-info?model=", {}, None),
    ("GET", "/model-info?x=1", {}, None),
    ("POST", "/generate", JSON, json.dumps(TEXT).encode()),
    ("POST", "/complete", JSON, json.dumps(TEXT | {"logprobs": 2, "num_return_sequences": 2}).encode()),
    ("POST", "/v1/completions", JSON, json.dumps(TEXT | {"n": 2}).encode()),
    ("POST", "/v1/chat/completions", JSON, json.dumps(CHAT, ensure_ascii=False).encode()),
    ("POST", "/chat/completions", {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(CHAT).encode()),
    ("POST", "/models/compare", JSON, json.dumps({"prompt": "x", "variants": [{}, {"seed": 2}]}).encode()),
    ("DELETE", "/cache?model=fake", {}, None),
    ("POST", "/models/fake/load", {}, None),
    ("POST", "/models/a/b/unload", {}, None),
    ("POST", "/models/fake/load", JSON, b'{"model": "fake"}'),
    ("PUT", "/models/default", JSON, b'{"model": "fake"}'),
    ("POST", "/generate", JSON, b'{"prompt": []}'),
    ("POST", "/v1/completions", JSON, b'{"prompt": "x", "model": "other"}'),
    ("POST", "/generate", JSON, b"{"),
    ("POST", "/generate", JSON, b"[1]"),
    ("POST", "/generate", JSON, b'{"prompt": NaN}'),
    ("POST", "/generate", JSON, b"[" * 50 + b"]" * 50),
    ("POST", "/generate", JSON, None),
    ("POST", "/generate", {}, b'{"prompt": "x"}'),
    ("POST", "/v1/chat/completions", {"Content-Type": "text/plain"}, b"{}"),
    ("POST", "/generate", {"Content-Type": "nonsense"}, b"{}"),
    ("POST", "/generate", {"Content-Type": "application/json; charset=latin-1"}, b"{}"),
    ("POST", "/generate", JSON | {"Content-Encoding": "gzip"}, b"{}"),
    ("POST", "/generate", JSON, b'{"prompt": "' + b"x" * 3000 + b'"}'),
    ("GET", "/nowhere", {}, None),
    ("GET", "/v1", {}, None),
    ("POST", "/v1/nowhere", JSON, b"{}"),
    ("GET", "/health/", {}, None),
    ("GET", "/generate", {}, None),
    ("DELETE", "/v1/models", {}, None),
    ("POST", "/health", JSON, b"{}"),
    ("HEAD", "/generate", {}, None),
]


@pytest.mark.parametrize(
    ("method", "target", "headers", "body"), ASKED, ids=[f"{i} {m} {t}" for i, (m, t, *_) in enumerate(ASKED)]
)
async def test_the_same_answer(
    aiohttp_client: Client, method: str, target: str, headers: dict[str, str], body: bytes | None
) -> None:
    """Status and body byte for byte, and the headers that tell of them, in every form of event."""
    settings = Settings.load(
        max_body_bytes=2048, events_operations=",".join({route.operation for route in ROUTES}), idempotency="off"
    )
    http = await aiohttp_client(create_app(settings, _context()))
    skip = [] if "Content-Type" in headers else ["Content-Type"]
    url = str(http.make_url("/")).rstrip("/") + target
    async with http.session.request(method, url, headers=headers, data=body, skip_auto_headers=skip) as response:
        expected = (await response.read()).decode()
        names = ("Content-Type", "Allow", "Retry-After", "Accept-Encoding")
        shown = {name: response.headers[name] for name in names if name in response.headers}
    for form in FORMS:
        answer = await Function(settings, _context()).answer(_event(form, method, target, headers, body), Invocation())
        assert answer["statusCode"] == response.status, (form, answer)
        assert answer["body"] == expected, form
        assert answer["isBase64Encoded"] is False
        assert ("cookies" in answer) == form.startswith("v2")
        found = answer.get("headers") or {name: value for name, (value,) in answer["multiValueHeaders"].items()}
        assert ("headers" in answer) != (form == "alb multi")
        assert {name: found[name] for name in names if name in found} == shown, form
        assert found["X-Request-Id"] == Invocation().aws_request_id
        if form.startswith("alb"):
            assert answer["statusDescription"].startswith(f"{response.status} ")


@pytest.mark.parametrize(
    "failure",
    [
        TooManyRequests("full", retry_after=2.1),
        ModelLoading("loading", retry_after=5),
        DeadlineExceeded("late"),
        ServiceError("planted"),
        RuntimeError("planted"),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_the_same_failures(aiohttp_client: Client, failure: Exception) -> None:
    """What the engine raises, and what nobody has foreseen, of which nothing is told."""
    settings = Settings.load(idempotency="off")
    for path, payload in (("/generate", TEXT), ("/v1/chat/completions", CHAT)):
        http = await aiohttp_client(create_app(settings, _context(failure=failure)))
        response = await http.post(path, json=payload)
        event = _event("v2", "POST", path, JSON, json.dumps(payload).encode())
        answer = await Function(settings, _context(failure=failure)).answer(event, Invocation())
        assert answer["statusCode"] == response.status >= 429
        assert answer["body"] == await response.text()
        assert answer["headers"].get("Retry-After") == response.headers.get("Retry-After")
        assert "planted" not in answer["body"] or isinstance(failure, ServiceError)


async def test_a_body_that_is_no_base64() -> None:
    """Is the sender's mistake."""
    event = load("function_url_base64") | {"body": "{}"}
    answer = await Function(Settings.load(idempotency="off"), _context()).answer(event)
    assert (answer["statusCode"], "not base64" in answer["body"]) == (400, True)


async def test_a_body_that_is_an_object() -> None:
    """Gets the answer that its JSON would get; a number is a mistake."""
    function = Function(Settings.load(idempotency="off"), _context())
    event = _event("v2", "POST", "/generate", JSON, json.dumps(TEXT).encode())
    written = event | {"body": TEXT, "isBase64Encoded": False}
    assert await function.answer(written, Invocation()) == await function.answer(event, Invocation())
    assert (await function.answer(event | {"body": 1}))["statusCode"] == 400


async def test_streams_are_refused_with_the_way_out() -> None:
    """Half an answer, or a whole one where pieces were asked for, would break clients."""
    function = Function(Settings.load(idempotency="off"), _context())
    answer = await function.answer(load("function_url_stream"))
    error = json.loads(answer["body"])["error"]
    assert (answer["statusCode"], error["param"], "Web Adapter" in error["message"]) == (400, "stream", True)
    event = load("function_url_stream") | {"body": json.dumps(CHAT | {"stream": False})}
    assert (await function.answer(event))["statusCode"] == 200


async def test_idempotency_keys_are_refused() -> None:
    """Nothing is recorded, so the header is not ignored."""
    function = Function(Settings.load(idempotency="off"), _context())
    event = _event("v2", "POST", "/generate", JSON | {"idempotency-key": "a"}, json.dumps(TEXT).encode())
    answer = await function.answer(event)
    assert (answer["statusCode"], json.loads(answer["body"])["param"]) == (400, "Idempotency-Key")


async def test_the_response_cache_tells_what_it_did() -> None:
    """X-Cache, its key and its age; Cache-Control is heard; and callers with other credentials share nothing."""
    function = Function(Settings.load(idempotency="off"), caching(_context()))
    body = json.dumps(TEXT | {"temperature": 0}).encode()

    async def ask(**headers: str) -> str:
        event = _event("v2", "POST", "/generate", JSON | headers, body)
        answer = await function.answer(event, Invocation())
        assert answer["headers"].keys() >= {"X-Cache", "X-Cache-Key"} or answer["headers"]["X-Cache"] == "BYPASS"
        return str(answer["headers"]["X-Cache"])

    assert [await ask(), await ask()] == ["MISS", "HIT"]
    assert await ask(**{"Cache-Control": "no-store"}) == "BYPASS"
    assert await ask(Authorization="Bearer x") == "MISS"


async def test_request_ids_and_traces(caplog: pytest.LogCaptureFixture) -> None:
    """A harmless id of the caller's own is kept; the line in the log has it, and the trace, and the tokens."""
    caplog.set_level(logging.INFO, "warmstart.access")
    function = Function(Settings.load(idempotency="off"), _context())
    answer = await function.answer(load("apigw_http_v2_post"), Invocation())
    assert answer["headers"]["X-Request-Id"] == "order-4711"
    event = load("apigw_http_v2_post")
    event["headers"]["x-request-id"] = "a b\n"
    assert (await function.answer(event, Invocation("mine")))["headers"]["X-Request-Id"] == "mine"
    (first, _) = (record for record in caplog.records if record.name == "warmstart.access")
    assert first.getMessage() == "POST /chat/completions"
    assert (vars(first)["status"], vars(first)["tokens_out"]) == (200, 3)
