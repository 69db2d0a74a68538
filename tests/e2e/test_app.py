"""The whole application over HTTP, on a fake model: what strangers may send, and what they get."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from yarl import URL

import app
from app import ROUTES, create_app
from handlers.api.routes import Route, error_form
from handlers.context import Context
from handlers.operations import OPERATIONS
from handlers.schemas.base import Cacheable
from runtime.errors import (
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    ModelLoading,
    ModelUnavailable,
    ServiceError,
    TooManyRequests,
)
from runtime.model.catalogue import ModelSpec
from runtime.model_pool.registry import Registry
from runtime.settings import Settings
from runtime.telemetry.metrics import Metrics
from runtime.types import Job, Token
from tests.support.batches import with_batches
from tests.support.fakes import FakeEngine, caching, fake_context, serving, until

Client = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]
Http = TestClient[web.Request, web.Application]

TEXT: dict[str, Any] = {"prompt": "x"}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
GETS = [
    route.plain_path.format(model="fake")
    for route in ROUTES
    if route.method == "GET" and not {"response_id", "file_id", "batch_id"} & {*route.fields}
]
GETS_ONLY = [path for path in GETS if {route.method for route in ROUTES if route.plain_path == path} <= {"GET"}]
# Those that generate one answer, and so stream its tokens as data without names.
POSTS = [
    route.path
    for route in ROUTES
    if OPERATIONS[route.operation].generates
    and issubclass(OPERATIONS[route.operation].request, Cacheable)
    and OPERATIONS[route.operation].stream_form == "data"
]
# What else does something, with the fake model in the paths: what it is asked with, and of a body what it needs.
LOAD, UNLOAD, DEFAULT, COMPARE = "/models/fake/load", "/models/fake/unload", "/models/default", "/models/compare"
DOING = {LOAD: "POST", UNLOAD: "POST", DEFAULT: "PUT", COMPARE: "POST", "/cache": "DELETE"}
BODY: dict[str, dict[str, Any]] = {
    **{route.path: CHAT if route.operation == "chat" else TEXT for route in ROUTES if route.path in POSTS},
    DEFAULT: {"model": "fake"},
    COMPARE: {"prompt": "x", "variants": [{}]},
}
# Routes that read a body: one of each shape of errors, one with another method, and one whose path has a field.
KINDS = ["/generate", "/v1/chat/completions", DEFAULT, LOAD]
PAGES = ["/", "/openapi.json", "/docs", "/redoc"]
PROBES = ["/livez", "/readyz", "/ping", "/version", "/load", "/metrics"]


@pytest.fixture(scope="module", autouse=True)
def _described_once() -> Iterator[None]:
    """The description is the same for all tests here, and making it takes most of an application's start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "build", functools.cache(app.build))
        yield


def _app(ctx: Context | None = None, **settings: Any) -> web.Application:
    return create_app(Settings.load(**settings), ctx or with_batches(fake_context()))


@pytest.fixture
async def http(aiohttp_client: Client) -> Http:
    """A client of the application with default settings on a plain fake model."""
    return await aiohttp_client(_app())


async def _refusal(response: aiohttp.ClientResponse, status: int, code: str | None = None) -> dict[str, Any]:
    """Check an error's shape; its fields, under OpenAI's names."""
    text = await response.text()
    assert response.status == status, text
    assert response.headers["X-Request-Id"]
    body: dict[str, Any] = json.loads(text)
    if error_form(response.url.path) == "openai":
        assert response.content_type == "application/json"
        assert body.keys() == {"error"}
        assert body["error"].keys() == {"message", "type", "param", "code"}
        found: dict[str, Any] = body["error"]
    elif error_form(response.url.path) == "ollama":
        assert response.content_type == "application/json"
        assert body.keys() == {"error", "code"}
        found = {"message": body["error"], "code": body["code"], "param": None}
    else:
        assert response.content_type == "application/problem+json"
        assert body.keys() - {"param"} == {"title", "status", "detail", "code"}
        assert body["status"] == status
        found = {"message": body["detail"], "code": body["code"], "param": body.get("param")}
    if code is not None:
        assert found["code"] == code
    assert "Traceback" not in text
    assert ".py" not in text
    return found


async def _post(http: Http, path: str, body: bytes, content_type: str | None = "application/json") -> Any:
    headers = {} if content_type is None else {"Content-Type": content_type}
    skip = ["Content-Type"] if content_type is None else []
    return await http.request(DOING.get(path, "POST"), path, data=body, headers=headers, skip_auto_headers=skip)


async def _raw(http: Http, method: str, path: str, **options: Any) -> aiohttp.ClientResponse:
    """A request whose path is sent as it is written."""
    url = URL(str(http.make_url("/")).rstrip("/") + path, encoded=True)
    return await http.session.request(method, url, **options)


def _events(raw: bytes) -> list[Any]:
    """The events of a stream; fails unless it is framed exactly as it should be."""
    *blocks, rest = raw.split(b"\n\n")
    assert rest == b""
    assert all(block.startswith(b"data: ") and b"\n" not in block for block in blocks)
    datas = [block.removeprefix(b"data: ") for block in blocks]
    return [data.decode() if data == b"[DONE]" else json.loads(data) for data in datas]


# Plain answers


@pytest.mark.parametrize("path", [*GETS, *PROBES, *PAGES])
async def test_get_routes_answer(http: Http, path: str) -> None:
    """Every GET route answers, and names its request."""
    response = await http.get(path)
    assert response.status == 200
    assert response.headers["X-Request-Id"]


@pytest.mark.parametrize("path", [*POSTS, *DOING])
async def test_other_routes_answer(http: Http, path: str) -> None:
    """Every other route answers in its operation's shape."""
    response = await http.request(DOING.get(path, "POST"), path, json=BODY.get(path))
    assert response.status == 200
    assert response.content_type == "application/json"
    operation = next(route.operation for route in ROUTES if route.plain_path.format(model="fake") == path)
    OPERATIONS[operation].response.model_validate(await response.json(), extra="forbid")


async def test_every_operation_has_a_route() -> None:
    """No operation is left without a way in."""
    assert {route.operation for route in ROUTES} == set(OPERATIONS)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_described_errors_are_the_rendered_ones(route: Route) -> None:
    """What a route says of its errors' shape is what the middleware does."""
    assert route.errors == error_form(route.path)


async def test_served_description(http: Http) -> None:
    """/openapi.json is the description of exactly these routes, in the version that runs."""
    document = await (await http.get("/openapi.json")).json()
    assert document["info"]["version"] == "0.test"
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    others = {("GET", path) for path in PROBES} | {("POST", "/events")}
    assert described == {(route.method, route.plain_path) for route in ROUTES} | others


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON;charset=UTF-8",
        "application/json;charset=utf8",
    ],
)
async def test_json_content_types(http: Http, content_type: str) -> None:
    """JSON is JSON however its type is written."""
    assert (await _post(http, "/generate", b'{"prompt": "x"}', content_type)).status == 200


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b' \r\n\t{"prompt"\n:\t"x"}\n ', id="white space"),
        pytest.param('{"prompt": "日本 😀 é"}'.encode(), id="UTF-8"),
        pytest.param(b'{"prompt": "\\ud83d\\ude00 \\u0000"}', id="escapes"),
        pytest.param(b'{"prompt": "x", "temperature": 1E0, "top_k": 1.0, "seed": -0}', id="numbers"),
        pytest.param(b'\xef\xbb\xbf{"prompt": "x"}', id="BOM"),
        pytest.param(b'{"prompt": "\xef\xbb\xbf"}', id="BOM in a text"),
    ],
)
async def test_json_in_all_its_forms(http: Http, body: bytes) -> None:
    """All that RFC 8259 calls JSON is read as such."""
    response = await _post(http, "/generate", body)
    assert response.status == 200
    assert (await response.json())["text"] == json.loads(body.decode("utf-8-sig"))["prompt"] + "Hello there."


# Bodies that are wrong: each of them is a unit in tests/handlers/api/test_payload.py

WRONG_BODIES = {
    "empty": b"",
    "cut": b"{",
    "not UTF-8": b'{"prompt": "\xff"}',
    "deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "list": b"[]",
    "lone surrogate in a name": b'{"\\ud800": 1}',
    "endless name": b'{"' + b"x" * 500_000 + b'": 1}',
    "nothing in it": b"{}",
}


@pytest.mark.parametrize("path", KINDS)
async def test_wrong_bodies(http: Http, path: str) -> None:
    """Whatever is not a request is 400, with a short message that any client can read; where the path says it all, the
    body may also be empty or left out.
    """
    for name, body in WRONG_BODIES.items():
        response = await _post(http, path, body)
        if path == LOAD and name in ("empty", "nothing in it"):
            assert response.status == 200
        else:
            found = await _refusal(response, 400, "invalid_request")
            assert 0 < len(found["message"]) < 2000, name
            assert found["message"].isprintable(), name


@pytest.mark.parametrize("path", POSTS)
async def test_duplicate_keys(http: Http, path: str) -> None:
    """Which of two equal names holds is not promised; that the service survives them is."""
    body = json.dumps(BODY[path])[:-1].encode() + b', "temperature": 0, "temperature": 1}'
    assert (await _post(http, path, body)).status in (200, 400)


@pytest.mark.parametrize(
    "content_type",
    [
        pytest.param(None, id="missing"),
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "application/jsonp",
        "application/json-patch+json",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json; charset=nonsense",
        "nonsense",
        "/",
        ";;;=",
        "x" * 5000,
    ],
)
async def test_wrong_content_types(http: Http, content_type: str | None) -> None:
    """What does not call itself JSON in UTF-8 is not read as such: a page of another site cannot post it unasked."""
    for path in KINDS:
        response = await _post(http, path, json.dumps(BODY.get(path, {})).encode(), content_type)
        found = await _refusal(response, 415, "unsupported_media_type")
        assert len(found["message"]) < 300


@pytest.mark.parametrize("path", [*BODY, LOAD, UNLOAD])
async def test_every_body_is_json(http: Http, path: str) -> None:
    """No route reads a form."""
    response = await _post(http, path, json.dumps(BODY.get(path, {})).encode(), "application/x-www-form-urlencoded")
    await _refusal(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("path", KINDS)
@pytest.mark.parametrize("chunked", [False, True])
async def test_body_of_10_megabytes(http: Http, path: str, chunked: bool) -> None:
    """More than MAX_BODY_BYTES is 413, whether its length is announced or only found out while it comes."""
    body = b'{"prompt": "' + b"x" * 10_000_000 + b'"}'

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    headers = {"Content-Type": "application/json"}
    response = await http.request(DOING.get(path, "POST"), path, data=pieces() if chunked else body, headers=headers)
    found = await _refusal(response, 413, "payload_too_large")
    assert "1048576" in found["message"]


async def test_largest_body(aiohttp_client: Client) -> None:
    """A body of exactly MAX_BODY_BYTES is read; one byte more is not."""
    http = await aiohttp_client(_app(max_body_bytes=2000))
    body = b'{"prompt": "x"}'
    assert (await _post(http, "/generate", body + b" " * (2000 - len(body)))).status == 200
    await _refusal(await _post(http, "/generate", body + b" " * (2001 - len(body))), 413)


async def test_compressed_bomb(http: Http) -> None:
    """A compressed body is refused, not unpacked."""
    import gzip

    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    bomb = gzip.compress(b'{"prompt": "' + b"x" * 20_000_000 + b'"}')
    assert len(bomb) < 100_000
    await _refusal(await http.post("/generate", data=bomb, headers=headers), 415, "unsupported_media_type")


# Routes that are wrong


METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]


@pytest.mark.parametrize("path", [*GETS_ONLY, *PROBES, *PAGES])
async def test_wrong_methods_on_get_routes(http: Http, path: str) -> None:
    """Anything but GET and HEAD is 405, with what is allowed."""
    for method in METHODS[1:]:
        response = await http.request(method, path)
        await _refusal(response, 405, "method_not_allowed")
        assert {item.strip() for item in response.headers["Allow"].split(",")} == {"GET", "HEAD"}, method


@pytest.mark.parametrize("path", [*POSTS, *DOING])
async def test_wrong_methods_on_other_routes(http: Http, path: str) -> None:
    """Anything but the route's method is 405, with what is allowed."""
    right = DOING.get(path, "POST")
    for method in METHODS:
        if method != right:
            response = await http.request(method, path, json=BODY.get(path))
            await _refusal(response, 405, "method_not_allowed")
            assert response.headers["Allow"] == right, method


@pytest.mark.parametrize("path", [*GETS, *PROBES, *PAGES])
async def test_head(http: Http, path: str) -> None:
    """HEAD is GET without the body, on every GET route (RFC 9110 section 9.3.2)."""
    got, head = await http.get(path), await http.head(path)
    assert (head.status, await head.read()) == (200, b"")
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    if path == "/metrics":  # its figures move between two requests, and may take another digit
        assert int(head.headers["Content-Length"]) > 0
    else:
        assert head.headers["Content-Length"] == str(len(await got.read()))


@pytest.mark.parametrize("path", [*POSTS, *DOING])
async def test_head_of_another_route(http: Http, path: str) -> None:
    """HEAD where there is no GET is 405 without a body."""
    response = await http.head(path)
    assert (response.status, await response.read()) == (405, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "//",
        "/generate/",
        "/Generate",
        "/generate/x",
        "/health/..",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/static/../../app.py",
        "/static/%2e%2e/%2e%2e/app.py",
        "/%00",
        "/%ff",
        "/%ed%a0%80",
        "/v1",
        "/v1/",
        "/v1/nowhere",
        "/v1/models/",
        "/v1/model/fake",
        "/chat",
        "/" + "x" * 5000,
        "/.env",
        "/*",
        "/models/",
        "/models/fake",
        "/models/fake/",
        "/models//load",
        "/models/load",
        "/models/fake/load/",
        "/models/fake/Load",
        "/models/fake%2Fload",
        "/models/x%0a/load",
        "/cache/",
        "/cache/fake",
        "/stats/fake",
    ],
)
async def test_unknown_paths(http: Http, path: str) -> None:
    """What is not there is 404 in the shape of where it is not, whatever is sent there."""
    await _refusal(await _raw(http, "GET", path), 404, "not_found")
    await _refusal(await _raw(http, "POST", path, data=b"{"), 404, "not_found")


@pytest.mark.parametrize(
    ("query", "takes"),
    [
        ("?x=1", False),
        ("?model=fake&x=1", False),
        ("?model=", False),
        ("?model", False),
        ("?model=%ff", None),
        ("?model=%ed%a0%80", None),
        ("?model=%00", None),
        ("?=1", False),
        ("?&&&", True),
        ("?", True),
        ("?%", None),
        ("?%00=%00", False),
        ("?__proto__=1", False),
        ("?model[]=fake", False),
        ("?stream=true", False),
        ("?" + "&".join(f"x{i}=1" for i in range(500)), False),
        ("?model=" + "x" * 5000, None),
        ("?model=' OR 1=1 --", None),
        ("?model=../../etc/passwd", None),
    ],
)
async def test_queries(http: Http, query: str, takes: bool | None) -> None:
    """Queries with unknown fields or empty values are 400, unknown models 404; nothing breaks the service. On OpenAI's
    routes see below.
    """
    for path in (path for path in GETS if not path.startswith("/v1/")):
        response = await _raw(http, "GET", path + query.replace(" ", "%20"))
        if takes:
            assert response.status == 200, path
        elif takes is False:
            await _refusal(response, 400, "invalid_request")
        else:
            found = await _refusal(response, response.status)
            assert response.status in (400, 404), path
            assert found["message"].isprintable(), path


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/fake", "/v1/completions", "/v1/chat/completions"])
async def test_queries_of_openai_clients(http: Http, path: str) -> None:
    """What clients and proxies of OpenAI's and Azure's put into the query of OpenAI's routes is not looked at."""
    body = json.dumps(BODY[path]).encode() if path in BODY else None
    method, headers = "POST" if body else "GET", {"Content-Type": "application/json"}
    for query in ("?limit=20&after=x", "?api-version=2024-10-21", "?model=other", "?%ff&x=1&x=2"):
        response = await _raw(http, method, path + query, data=body, headers=headers)
        assert response.status == 200, query


async def test_repeated_query_field(http: Http) -> None:
    """A field given twice is not silently one of the two."""
    response = await http.get("/model-info?model=fake&model=other")
    await _refusal(response, 400, "invalid_request")


@pytest.mark.parametrize("path", GETS)
async def test_body_on_get(http: Http, path: str) -> None:
    """A body that means nothing is not read for meaning."""
    assert (await http.request("GET", path, data=b"\xff{")).status == 200


async def test_model_by_query(http: Http) -> None:
    """GET operations take their fields from the query."""
    assert (await http.get("/model-info?model=fake")).status == 200
    found = await _refusal(await http.get("/model-info?model=other"), 404, "model_not_found")
    assert found["param"] == "model"


# Models by path, and the cache


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("other", "other"),
        ("owner/name", "owner/name"),
        ("owner%2Fname", "owner/name"),
        ("owner%2fname", "owner/name"),
        ("model:adapter", "model:adapter"),
        ("model%3Aadapter", "model:adapter"),
        ("Fake", "Fake"),
        ("%66ak", "fak"),
        ("a%20b+c", "a b+c"),
        ("%C3%A9%F0%9F%98%80", "é😀"),
        ("a%2525b", "a%25b"),
        ("a/load", "a/load"),
        ("fake/unload", "fake/unload"),
        ("a//b", "a//b"),
        ("..%2F..%2Fetc", "../../etc"),
        ("%00", "\x00"),
        ("'; DROP TABLE models --".replace(" ", "%20"), "'; DROP TABLE models --"),
        ("__proto__", "__proto__"),
        ("x" * 256, "x" * 256),
    ],
)
async def test_model_ids_in_paths(http: Http, path: str, name: str) -> None:
    """Ids may hold slashes, written as such or encoded; one that is not served is 404, as it was read."""
    for action in ("load", "unload"):
        found = await _refusal(await _raw(http, "POST", f"/models/{path}/{action}"), 404, "model_not_found")
        assert found["param"] == "model"
        assert repr(name) in found["message"]


@pytest.mark.parametrize("path", ["%ff", "%ed%a0%80", "%c0%af", "%", "%zz", "x" * 257, "x" * 5000, "%2e%2e", ".", "*"])
async def test_odd_model_ids_in_paths(http: Http, path: str) -> None:
    """What is no text, or too much of it, names no model; nothing breaks the service."""
    for action in ("load", "unload"):
        response = await _raw(http, "POST", f"/models/{path}/{action}")
        found = await _refusal(response, response.status)
        assert response.status in (400, 404)
        assert found["message"].isprintable()
        assert len(found["message"]) < 1000


@pytest.mark.parametrize("action", ["load", "unload"])
async def test_a_served_model_is_found_however_it_is_written(http: Http, action: str) -> None:
    """Percent-encoding is not part of an id."""
    for path in ("fake", "%66ake", "%66%61%6B%65"):
        response = await _raw(http, "POST", f"/models/{path}/{action}")
        assert (response.status, (await response.json())["id"]) == (200, "fake")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("owner/name", "owner/name"),
        ("owner%2Fname", "owner/name"),
        ("owner/name:adapter", "owner/name:adapter"),
        ("owner%2Fname%3Aadapter", "owner/name:adapter"),
        ("a/load", "a/load"),
    ],
)
async def test_one_model(aiohttp_client: Client, path: str, name: str) -> None:
    """Ids may hold slashes and colons, written as such or encoded; what is not served is 404, in OpenAI's shape."""
    load: Any = lambda spec, progress: FakeEngine()  # noqa: E731
    ctx = replace(fake_context(), models=Registry([ModelSpec(name, "folder", "/x")], load))
    http = await aiohttp_client(_app(ctx))
    found = await (await _raw(http, "GET", f"/v1/models/{path}")).json()
    (listed,) = (await (await http.get("/v1/models")).json())["data"]
    assert found == listed
    assert found["id"] == name
    refused = await _refusal(await _raw(http, "GET", f"/v1/models/{path}x"), 404, "model_not_found")
    assert repr(name + "x") in refused["message"]


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_a_field_that_the_path_names(http: Http, path: str) -> None:
    """It stands in one place only."""
    found = await _refusal(await http.post(path, json={"model": "fake"}), 400, "invalid_request")
    assert (found["param"], found["message"]) == ("model", "model: remove this field, the path already has it")


@pytest.mark.parametrize("path", [LOAD, UNLOAD, DEFAULT, "/cache"])
async def test_unknown_fields_of_other_routes(http: Http, path: str) -> None:
    """They are refused by name, in a body and in a query; a query means nothing where a body does."""
    method = DOING[path]
    if method == "DELETE":
        assert (await http.delete(path, json={"x": 1})).status == 200  # it has no body, so none is read
        response = await http.delete(path + "?x=1")
    else:
        assert (await http.request(method, path + "?x=1", json=BODY.get(path, {}))).status == 200
        response = await http.request(method, path, json=BODY.get(path, {}) | {"x": 1})
    assert (await _refusal(response, 400, "invalid_request"))["param"] == "x"


async def test_a_load_streams_its_progress(http: Http) -> None:
    """Asked for events, it sends the model's state each time it changes, framed as every stream is."""
    response = await http.post(LOAD, json={"stream": True})
    assert (response.status, response.content_type) == (200, "text/event-stream")
    *events, last = _events(await response.read())
    assert last == "[DONE]"
    assert [event["id"] for event in events] == ["fake"]
    await _refusal(await http.post("/models/other/load", json={"stream": True}), 404, "model_not_found")


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 200),
        ("?model=fake", 200),
        ("?prefix=0af", 200),
        ("?model=fake&prefix=0", 200),
        ("?model=", 400),
        ("?prefix=", 400),
        ("?prefix=XYZ", 400),
        ("?prefix=%2e%2e", 400),
        ("?prefix=*", 400),
        ("?prefix=0&prefix=1", 400),
        ("?model=" + "x" * 257, 400),
    ],
)
async def test_what_is_dropped_from_the_cache(aiohttp_client: Client, query: str, status: int) -> None:
    """All of it, or what the query says; a query that is wrong drops nothing."""
    http = await aiohttp_client(_app(caching(fake_context())))
    await http.post("/generate", json=TEXT | {"seed": 1})
    entries = (await (await http.get("/cache/stats")).json())["entries"]
    assert entries == 1
    response = await http.delete("/cache" + query)
    assert response.status == status
    if status == 400:
        await _refusal(response, 400, "invalid_request")
        assert (await (await http.get("/cache/stats")).json())["entries"] == entries
    elif "prefix" not in query:
        assert await response.json() == {"removed": 1}


# Errors of the operations


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"model": "other"}, 404, "model_not_found", "model"),
        ({"temperature": 3}, 400, "invalid_request", "temperature"),
        ({"tempratur": 1}, 400, "invalid_request", "tempratur"),
        ({"stop": [""]}, 400, "invalid_request", "stop.0"),
    ],
)
async def test_faults_of_the_caller(
    http: Http, path: str, change: dict[str, Any], status: int, code: str, param: str
) -> None:
    """A wrong request gets a plain error with the field at fault, also where a stream was asked for."""
    for stream in (False, True):
        response = await http.post(path, json=BODY[path] | change | {"stream": stream})
        assert (await _refusal(response, status, code))["param"] == param


@pytest.mark.parametrize(
    ("failure", "retry_after"),
    [
        (ModelLoading("still loading", retry_after=4.2), "5"),
        (ModelUnavailable("not there; pull it"), None),
        (Draining("shutting down", retry_after=1), "1"),
    ],
)
async def test_models_that_cannot_answer(
    aiohttp_client: Client, failure: ServiceError, retry_after: str | None
) -> None:
    """A model that loads, is missing or drains is 503 with the time after which to try again, if that is known."""
    http = await aiohttp_client(_app(fake_context(failure=failure)))
    for path, stream in itertools.product(POSTS, (False, True)):
        response = await http.post(path, json=BODY[path] | {"stream": stream})
        assert (await _refusal(response, 503, failure.code))["message"] == failure.message
        assert response.headers.get("Retry-After") == retry_after


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (TooManyRequests("full", retry_after=1), 429, "queue_full"),
        (DeadlineExceeded("too slow"), 504, "deadline_exceeded"),
        (Draining("shutting down"), 503, "draining"),
        (InvalidRequest("not that", param="seed"), 400, "invalid_request"),
        (RuntimeError("/srv/secret"), 500, "internal_error"),
    ],
)
async def test_failing_before_the_first_token(
    aiohttp_client: Client, failure: Exception, status: int, code: str
) -> None:
    """An engine that fails before it has given anything is a plain HTTP error, also where a stream was asked for."""
    engine = FakeEngine(fail_after=0, failure=failure)
    http = await aiohttp_client(_app(fake_context(engine)))
    for path, stream in itertools.product(POSTS, (False, True)):
        response = await http.post(path, json=BODY[path] | {"stream": stream})
        found = await _refusal(response, status, code)
        assert "secret" not in found["message"]
        assert engine.open_streams == 0


# Streams


@pytest.mark.parametrize("path", POSTS)
async def test_stream(http: Http, path: str) -> None:
    """Server-sent events that are never stored, each a data line, the last of them [DONE]; nothing after it."""
    response = await http.post(path, json=BODY[path] | {"stream": True})
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["X-Request-Id"]
    *events, last = _events(await response.read())
    assert last == "[DONE]"
    operation = OPERATIONS[next(route.operation for route in ROUTES if route.path == path)]
    assert operation.chunk is not None
    for event in events:
        operation.chunk.model_validate(event, extra="forbid")


async def test_stream_joins_to_the_answer(http: Http) -> None:
    """What is streamed is what would have been answered."""
    body = {"prompt": ["a", "b"], "num_return_sequences": 2}
    whole = await (await http.post("/generate", json=body)).json()
    *events, _ = _events(await (await http.post("/generate", json=body | {"stream": True})).read())
    texts = [""] * 4
    for event in events[:-1]:
        texts[event["index"]] += event["text"]
    assert texts == [sequence["text"] for sequence in whole["sequences"]]
    assert events[-1]["usage"] == whole["usage"]


async def test_line_breaks_stay_inside_events(aiohttp_client: Client) -> None:
    """Text with line breaks of any kind, or with the look of an event, cannot break the framing."""
    words = ("a\n\nb", "\r\n", "\u2028", "data: [DONE]\n\n", "😀", "\x00")
    http = await aiohttp_client(_app(fake_context(FakeEngine(words))))
    response = await http.post("/complete", json=TEXT | {"stream": True})
    *events, _, last = _events(await response.read())
    assert last == "[DONE]"
    assert "".join(event["text"] for event in events) == "".join(words)


@pytest.mark.parametrize("path", POSTS)
async def test_events_are_sent_as_they_come(aiohttp_client: Client, path: str) -> None:
    """The first token does not wait for the second."""

    class Held(FakeEngine):
        go = asyncio.Event()

        async def stream(self, jobs: Sequence[Job]) -> AsyncGenerator[Token, None]:
            yield Token(0, 0, "first")
            await self.go.wait()
            yield Token(0, 1, "second", "stop")

    engine = Held()
    engine.go = asyncio.Event()
    http = await aiohttp_client(_app(fake_context(engine)))
    async with asyncio.timeout(10):
        response = await http.post(path, json=BODY[path] | {"stream": True})
        seen = b""
        while b"first" not in seen:
            piece = await response.content.readany()
            assert piece  # at the end it would be empty for ever
            seen += piece
        assert b"second" not in seen
        engine.go.set()
        seen += await response.content.read()
    assert seen.endswith(b"data: [DONE]\n\n")
    assert b"second" in seen


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (DeadlineExceeded("too slow"), "deadline_exceeded"),
        (Draining("shutting down"), "draining"),
        (RuntimeError("/srv/secret"), "internal_error"),
    ],
)
async def test_failing_midway(aiohttp_client: Client, path: str, failure: Exception, code: str) -> None:
    """A stream that fails midway ends with an error event and without [DONE]; the connection serves on."""
    engine = FakeEngine(fail_after=2, failure=failure)
    http = await aiohttp_client(_app(fake_context(engine)))
    response = await http.post(path, json=BODY[path] | {"stream": True})
    assert response.status == 200
    raw = await response.read()
    *events, last = _events(raw)
    assert events
    assert "[DONE]" not in events
    assert last["error"]["code"] == code
    assert b"secret" not in raw
    assert engine.open_streams == 0
    assert (await http.get("/livez")).status == 200


async def test_unforeseen_failure_midway_is_logged(aiohttp_client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """The log has what the error event does not tell."""
    http = await aiohttp_client(_app(fake_context(FakeEngine(fail_after=1, failure=RuntimeError("why")))))
    with caplog.at_level(logging.ERROR):
        await (await http.post("/generate", json=TEXT | {"stream": True})).read()
    (record,) = [record for record in caplog.records if record.name == "warmstart.app"]
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "why"


@pytest.mark.parametrize("path", POSTS)
async def test_engine_that_says_nothing(aiohttp_client: Client, path: str) -> None:
    """A stream without a token still begins and ends like one."""
    http = await aiohttp_client(_app(fake_context(FakeEngine(words=()))))
    response = await http.post(path, json=BODY[path] | {"stream": True})
    assert response.status == 200
    *events, last = _events(await response.read())
    assert last == "[DONE]"
    assert [event["usage"]["completion_tokens"] for event in events] == ([] if "completions" in path else [0])


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_goes(path: str, stream: bool) -> None:
    """A client that goes away, reading a stream or waiting for an answer, frees the engine."""
    engine = FakeEngine(words=("a",) * 100_000, pause=0.01)
    limit = {"max_tokens" if "completions" in path else "max_new_tokens": 100_000}
    async with serving(fake_context(engine)) as url, aiohttp.ClientSession() as session:

        async def call() -> None:
            async with session.post(url + path, json=BODY[path] | limit | {"stream": stream}) as response:
                await response.read()

        calls = [asyncio.create_task(call()) for _ in range(3)]
        await until(lambda: engine.open_streams == 3)
        calls[0].cancel()
        await until(lambda: engine.open_streams == 2)  # the others go on
        for task in calls[1:]:
            task.cancel()
        await until(lambda: engine.open_streams == 0)
        await asyncio.gather(*calls, return_exceptions=True)
        async with session.get(url + "/livez") as response:
            assert response.status == 200


# CORS

PAGE = "https://app.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


@pytest.mark.parametrize("path", [*POSTS, *DOING])
async def test_no_cors_by_default(http: Http, path: str) -> None:
    """No page of another origin may call unless it is configured."""
    method = DOING.get(path, "POST")
    preflight = PREFLIGHT | {"Access-Control-Request-Method": method}
    response = await http.options(path, headers={"Origin": PAGE, **preflight})
    await _refusal(response, 405)
    assert not [name for name in response.headers if name.startswith("Access-Control")]
    response = await http.request(method, path, json=BODY.get(path), headers={"Origin": PAGE})
    assert response.status == 200
    assert not [name for name in response.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize("path", [*POSTS, *DOING])
async def test_cors_for_a_configured_origin(aiohttp_client: Client, path: str) -> None:
    """A configured origin's preflight passes; its answers, errors and streams too, can be read by its pages."""
    http = await aiohttp_client(_app(cors_origins=PAGE))
    method = DOING.get(path, "POST")
    preflight = PREFLIGHT | {"Access-Control-Request-Method": method}
    response = await http.options(path, headers={"Origin": PAGE, **preflight})
    assert response.status == 200
    assert response.headers["Access-Control-Allow-Origin"] == PAGE
    assert response.headers["Access-Control-Allow-Methods"] == method
    assert response.headers["Access-Control-Allow-Headers"].lower() == "content-type"
    assert "Access-Control-Allow-Credentials" not in response.headers
    answers: list[tuple[Any, str, int]] = [(BODY.get(path), "", 200)]
    answers += [(BODY[path] | {"stream": True}, "", 200)] if path in POSTS else []
    answers += [(None, "?x=1", 400) if method == "DELETE" else ({"x": 1}, "", 400)]
    for body, query, status in answers:
        response = await http.request(method, path + query, json=body, headers={"Origin": PAGE})
        assert response.status == status
        assert response.headers["Access-Control-Allow-Origin"] == PAGE
        assert "X-Request-Id" in response.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("origin", ["https://evil.example", "http://app.example", "https://app.example.evil", "null"])
async def test_cors_refused_for_another_origin(aiohttp_client: Client, origin: str) -> None:
    """Another origin's preflight is refused, and nothing tells its pages that they may read."""
    http = await aiohttp_client(_app(cors_origins=PAGE))
    response = await http.options("/generate", headers={"Origin": origin, **PREFLIGHT})
    assert "not allowed" in (await _refusal(response, 400))["message"]
    assert not [name for name in response.headers if name.startswith("Access-Control")]
    response = await http.post("/generate", json=TEXT, headers={"Origin": origin})
    assert not [name for name in response.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize(
    "headers", [{}, {"Origin": PAGE}, {"Origin": PAGE, "Access-Control-Request-Method": "DELETE"}, PREFLIGHT]
)
async def test_odd_preflights(aiohttp_client: Client, headers: dict[str, str]) -> None:
    """OPTIONS that are no preflight, or one for a method that is not there, are refused in the standard shape."""
    http = await aiohttp_client(_app(cors_origins=PAGE))
    await _refusal(await http.options("/generate", headers=headers), 400)


async def test_cors_keeps_get_routes(aiohttp_client: Client) -> None:
    """Where origins are configured, GET and HEAD work as before."""
    http = await aiohttp_client(_app(cors_origins=f"{PAGE} https://other.example"))
    for path in GETS:
        response = await http.get(path, headers={"Origin": "https://other.example"})
        assert response.headers["Access-Control-Allow-Origin"] == "https://other.example"
        assert (await http.head(path)).status == 200


async def test_preflight_of_a_denied_address(aiohttp_client: Client) -> None:
    """A preflight passes no address that may not call."""
    http = await aiohttp_client(_app(cors_origins=PAGE, allowed_ips="10.0.0.0/8"))
    await _refusal(await http.options("/generate", headers={"Origin": PAGE, **PREFLIGHT}), 403)


# Probes and addresses


@pytest.mark.parametrize(
    ("models", "status", "word", "alive"),
    [
        ({}, 200, "ready", True),
        ({"ready": False, "state": "loading"}, 503, "loading", True),
        ({"ready": False, "state": "unloaded"}, 503, "unloaded", True),
        ({"ready": False, "state": "failed"}, 503, "failed", True),
        pytest.param({"ready": False, "state": "ready"}, 503, "failed", True, id="its worker hangs"),
        pytest.param({"ready": False, "state": "ready", "alive": False}, 503, "failed", False, id="its worker is gone"),
        ({"ready": False, "state": "ready", "draining": True}, 503, "draining", True),
    ],
)
async def test_probes(aiohttp_client: Client, models: dict[str, Any], status: int, word: str, alive: bool) -> None:
    """/readyz says whether requests will be answered, and why not; /livez only whether to keep the process. /ping is
    SageMaker's name of /readyz.
    """
    http = await aiohttp_client(_app(fake_context(**models)))
    live = await http.get("/livez")
    for path in ("/readyz", "/ping"):
        ready = await http.get(path)
        assert (ready.status, await ready.json()) == (status, {"status": word})
    assert (live.status, await live.json()) == ((200, {"status": "alive"}) if alive else (503, {"status": "dead"}))
    assert (await http.get("/health")).status == 200


async def test_version_and_load(aiohttp_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """In vLLM's forms: the version that runs, and how many requests use any model now."""
    ctx = fake_context()
    (model,) = ctx.models.status()
    monkeypatch.setattr(ctx.models, "status", lambda: [replace(model, running=2), replace(model, running=3)])
    http = await aiohttp_client(_app(ctx))
    assert await (await http.get("/version")).json() == {"version": "0.test"}
    assert await (await http.get("/load")).json() == {"server_load": 5}


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        (None, "text/plain; version=0.0.4; charset=utf-8", b""),
        ("text/plain", "text/plain; version=0.0.4; charset=utf-8", b""),
        (
            "Application/OpenMetrics-Text;version=9.9,text/plain;q=0.5",
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
            b"# EOF\n",
        ),
    ],
)
async def test_metrics(aiohttp_client: Client, accept: str | None, content_type: str, end: bytes) -> None:
    """/metrics shows what the application's models feed, in the format that is asked for."""
    metrics = Metrics()
    metrics.model("a").restarts.inc(3)
    http = await aiohttp_client(create_app(Settings.load(), fake_context(), metrics))
    response = await http.get("/metrics", headers={} if accept is None else {"Accept": accept})
    body = await response.read()
    assert (response.status, response.headers["Content-Type"]) == (200, content_type)
    assert b'warmstart:engine_restarts_total{model_name="a"} 3.0\n' in body
    assert body.endswith(end)


@pytest.mark.parametrize("path", [*GETS, *POSTS, *DOING, *PROBES, *PAGES, "/nowhere", "/v1/nowhere"])
async def test_denied_address(aiohttp_client: Client, path: str) -> None:
    """An address that is not allowed gets 403 everywhere, in the shape of where it asked."""
    engine = FakeEngine()
    http = await aiohttp_client(_app(fake_context(engine), allowed_ips="10.0.0.0/8"))
    method = "POST" if path in POSTS else DOING.get(path, "GET")
    response = await http.request(method, path, json=BODY.get(path))
    await _refusal(response, 403, "client_address_denied")
    assert engine.jobs == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": "my secret"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "my secret"}]}),
        ("/v1/responses", {"input": "my secret"}),
    ],
)
@pytest.mark.parametrize("logged", [False, True])
async def test_log_prompts(
    aiohttp_client: Client, caplog: pytest.LogCaptureFixture, path: str, body: dict[str, Any], logged: bool
) -> None:
    """What people write is in the log only if LOG_PROMPTS says so."""
    http = await aiohttp_client(_app(log_prompts=logged))
    with caplog.at_level(logging.DEBUG):
        await http.post(path, json=body)
    told = [record for record in caplog.records if "my secret" in str(vars(record))]
    assert bool(told) == logged


# Below HTTP's good manners


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"GET /livez HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(b"GET http://evil.example/livez HTTP/1.1\r\nHost: x\r\n\r\n", id="absolute form"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", id="asterisk form"),
        pytest.param(b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", id="authority form"),
        pytest.param(b"GET livez HTTP/1.1\r\nHost: x\r\n\r\n", id="no slash"),
        pytest.param(b"NONSENSE /livez HTTP/1.1\r\nHost: x\r\n\r\n", id="unknown method"),
        pytest.param(b"NONSENSE\r\n\r\n", id="no request line"),
        pytest.param(b"GET /livez HTTP/9.9\r\nHost: x\r\n\r\n", id="version"),
        pytest.param(b"GET /livez HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", id="broken header"),
        pytest.param(b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", id="endless header"),
        pytest.param(b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="endless path"),
        pytest.param(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: -5\r\n\r\n",
            id="negative length",
        ),
        pytest.param(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="two framings",
        ),
        pytest.param(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            id="broken chunk",
        ),
        pytest.param(b"GET /livez HTTP/1.1\r\nHost: x\r\nExpect: nonsense\r\n\r\n", id="unknown expectation"),
    ],
)
async def test_raw_requests(request_bytes: bytes) -> None:
    """Requests that no client library would send are answered below 500, or cut; the service serves on."""
    async with serving() as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request_bytes)
        writer.write_eof()
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        if answer:
            assert 200 <= int(answer.split(b" ")[1]) < 500
            assert b"Traceback" not in answer
        async with aiohttp.ClientSession() as session, session.get(url + "/livez") as response:
            assert response.status == 200


async def test_awaited_continue() -> None:
    """A client that waits for 100 Continue before it sends its body gets it, and then its answer."""
    async with (
        serving() as url,
        aiohttp.ClientSession() as session,
        session.post(url + "/generate", json=TEXT, expect100=True) as response,
    ):
        assert response.status == 200
