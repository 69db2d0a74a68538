"""API keys seen from outside: the real application, every route, and keys that change while it runs."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

import server
from app import ROUTES, create_app
from handlers.operations import OPERATIONS, SCOPES
from loadtests.service import Service, running_service
from runtime.keys.records import KeyRecord, digest, new_key
from runtime.settings import Settings
from runtime.types import Caller
from tests.support.batches import with_batches
from tests.support.command_line import warmstart
from tests.support.fakes import caching, fake_context
from tests.support.waiting import wait_until

Client = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]

KEYS = {scope: new_key() for scope in sorted(SCOPES)}
ALL = {"X-API-Key": KEYS["*"]}
GREEDY = {"messages": [{"role": "user", "content": "x"}], "temperature": 0}


def _record(key: str, scope: str = "*", id_: str | None = None) -> str:
    return KeyRecord(
        Caller(id_ or f"k_{digest(key).hex()[:8]}", scope, frozenset({scope})), 1, None, digest(key)
    ).line()


RECORDS = "\n".join(_record(key, scope) for scope, key in KEYS.items())


def _app(*, ctx: Any = None, **settings: Any) -> web.Application:
    loaded = Settings.load(**{"api_keys": RECORDS, "auth_failures_per_minute": 1_000_000} | settings)
    return create_app(loaded, ctx or with_batches(fake_context()))


def _path(path: str) -> str:
    ids = {"model": "fake", "response_id": "resp_1", "file_id": "file-2", "batch_id": "batch_1"}
    return re.sub(r"\{(\w+):[^{}]*\}", lambda field: ids[field[1]], path)


@pytest.mark.parametrize(
    "route", [*ROUTES, None], ids=lambda route: f"{route.method} {route.path}" if route else "metrics"
)
async def test_each_operation_needs_its_scope(aiohttp_client: Client, route: Any) -> None:
    """A key passes with the operation's own scope or *, an admin's operation only with admin; health is open to all.

    What translates to a chat passes with the scope of a chat, too; what belongs to batches, with that of creating one.
    """
    http = await aiohttp_client(_app())
    method, path, name = (
        ("GET", "/metrics", "metrics") if route is None else (route.method, route.path, route.operation)
    )
    admin = route is not None and OPERATIONS[name].admin
    passed = set()
    for scope, key in KEYS.items():
        response = await http.request(method, _path(path), headers={"Authorization": f"Bearer {key}"})
        if response.status not in (401, 403):
            passed.add(scope)
    anybody = await http.request(method, _path(path))
    if name == "health":
        assert passed == SCOPES
        assert anybody.status == 200
    else:
        wider = None if route is None else OPERATIONS[name].part_of
        assert passed == ({"admin"} if admin else {name, wider or name, "*"})
        assert anybody.status == 401


async def test_head(aiohttp_client: Client) -> None:
    """HEAD needs what GET needs."""
    http = await aiohttp_client(_app())
    for route in ROUTES:
        if route.method == "GET" and route.operation != "health":
            path = _path(route.path)
            assert (await http.head(path)).status == 401
            assert (await http.head(path, headers={"X-API-Key": KEYS["admin"]})).status == 403
            assert (await http.head(path, headers=ALL)).status == (404 if "_id" in route.path else 200)


@pytest.mark.parametrize(
    "path", ["/nowhere", "/v1/nowhere", "/GENERATE", "/%2Fgenerate", "/generate/", "/livez/", "/livez/x"]
)
async def test_what_is_not_there(aiohttp_client: Client, path: str) -> None:
    """Without a key nobody learns what there is; with one, 404 as ever."""
    http = await aiohttp_client(_app())
    response = await http.get(path)
    assert response.status == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="warmstart"'
    assert (await http.get(path, headers=ALL)).status == 404


@pytest.mark.parametrize("method", ["DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_other_methods(aiohttp_client: Client, method: str) -> None:
    """Nor which methods; with a key, 405 as ever. What looks like a preflight is none where no page may call."""
    http = await aiohttp_client(_app())
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    for headers in ({}, preflight):
        assert (await http.request(method, "/generate", headers=headers)).status == 401
        assert (await http.request(method, "/livez", headers=headers)).status == 401
        assert (await http.request(method, "/generate", headers=ALL | headers)).status == 405


async def test_probes_are_open(aiohttp_client: Client) -> None:
    """Who watches the service needs no key, and a wrong one does not matter there."""
    http = await aiohttp_client(_app())
    for path in ("/livez", "/readyz", "/ping", "/health"):
        for headers in ({}, {"X-API-Key": new_key()}, {"Authorization": "Basic x"}):
            assert (await http.get(path, headers=headers)).status == 200
            assert (await http.head(path, headers=headers)).status == 200


@pytest.mark.parametrize("open_pages", [True, False])
async def test_pages(aiohttp_client: Client, open_pages: bool) -> None:
    """Closed like everything else; OPEN_PAGES opens them and their files, and nothing that they call."""
    app = _app(open_pages=open_pages)
    http = await aiohttp_client(app)
    paths = {route.resource.canonical for route in app.router.routes() if route.resource is not None}
    files = {path for path in paths if path.startswith("/static/") or path in ("/", "/docs", "/redoc", "/openapi.json")}
    assert len(files) > 5
    for path in sorted(files):
        assert (await http.get(path)).status == (200 if open_pages else 401)
        assert (await http.get(path, headers=ALL)).status == 200
    assert (await http.get("/static/nothing.js")).status == 401
    assert (await http.post("/generate", json={"prompt": "x"})).status == 401
    assert (await http.get("/models")).status == 401


async def test_preflight(aiohttp_client: Client) -> None:
    """A browser asks without a key whether a page may send one; the page then sees why it is refused without."""
    http = await aiohttp_client(_app(cors_origins="https://a.example"))
    origin = {"Origin": "https://a.example"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    response = await http.options("/v1/chat/completions", headers=origin | asked)
    assert response.status == 200
    assert "AUTHORIZATION" in response.headers["Access-Control-Allow-Headers"].upper()
    refused = await http.post("/v1/chat/completions", json=GREEDY, headers=origin)
    assert refused.status == 401
    assert refused.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert (await http.options("/v1/chat/completions", headers=origin)).status == 401  # asks for nothing: no preflight
    assert (await http.options("/nowhere", headers=origin | asked)).status == 401


async def test_openai_clients_are_refused_in_their_language(aiohttp_client: Client) -> None:
    """The code that OpenAI's own service gives, in its shape; their clients raise AuthenticationError of it."""
    http = await aiohttp_client(_app())
    response = await http.post("/v1/chat/completions", json=GREEDY, headers={"Authorization": "Bearer sk-x"})
    assert response.status == 401
    error = (await response.json())["error"]
    assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")


async def test_body_of_nobody_is_not_awaited(aiohttp_client: Client) -> None:
    """Who has no key and announces a body is refused at once, before a byte of it."""
    client = await aiohttp_client(_app(body_timeout_seconds=60))
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n")
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
    writer.close()


async def test_kept_answers_are_apart(aiohttp_client: Client) -> None:
    """Each key has its own kept answers, whichever header it comes in."""
    http = await aiohttp_client(_app(ctx=caching(fake_context())))

    async def ask(headers: dict[str, str]) -> str:
        return (await http.post("/v1/chat/completions", json=GREEDY, headers=headers)).headers["X-Cache"]

    assert await ask({"X-API-Key": KEYS["*"]}) == "MISS"
    assert await ask({"X-API-Key": KEYS["chat"]}) == "MISS"
    assert await ask({"Authorization": f"Bearer {KEYS['*']}"}) == "HIT"
    assert await ask({"Authorization": f"bearer  {KEYS['chat']}", "X-API-Key": KEYS["chat"]}) == "HIT"


async def test_without_keys_nobody_needs_one(aiohttp_client: Client) -> None:
    """The default: who may call is then the allowlist's to say, and credentials are not looked at."""
    http = await aiohttp_client(_app(api_keys=" \n"))
    for headers in ({}, {"X-API-Key": "x"}, {"Authorization": "Basic x"}):
        assert (await http.get("/models", headers=headers)).status == 200
        assert (await http.delete("/cache", headers=headers)).status != 403


async def test_a_file_without_keys_locks(aiohttp_client: Client, tmp_path: Path) -> None:
    """Where a file of keys is named and has none, nobody may call; it does not mean that nobody needs a key."""
    (tmp_path / "keys").touch(0o600)
    http = await aiohttp_client(_app(api_keys="", api_keys_file=tmp_path / "keys"))
    assert (await http.get("/models")).status == 401
    assert (await http.get("/models", headers=ALL)).status == 401


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("API_KEYS", KEYS["*"], "API_KEYS: record 1 is not JSON"),
        ("API_KEYS", _record(KEYS["*"], "chta"), "API_KEYS: record 1: scopes: there is no chta"),
        ("API_KEYS", _record(KEYS["*"]) * 2, "API_KEYS: id: "),
        ("API_KEYS_FILE", "/nowhere/keys", "API_KEYS_FILE: "),
    ],
    ids=["a key for a record", "unknown scope", "twice", "no file"],
)
def test_wrong_records_stop_the_start(name: str, value: str, fault: str) -> None:
    """With the setting's name, the record and the field; the key is not repeated."""
    ended = warmstart("serve", **{"PORT": "0", "PRELOAD": "false", name: value})
    assert ended.returncode == 2
    assert fault in ended.stderr
    assert KEYS["*"] not in ended.stdout + ended.stderr


def _status(service: Service, key: str) -> int:
    connection = service.connect(timeout=10)
    try:
        connection.request("GET", "/models", headers={"Authorization": f"Bearer {key}"})
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_key_s_life(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a running service: made, rotated with two keys at once, revoked; no restart, and no key in its log."""
    path = tmp_path / "keys"

    def keys(*arguments: str) -> Any:
        capsys.readouterr()
        assert server.main(["keys", *arguments, "--json", "--file", str(path)]) == 0
        return json.loads(capsys.readouterr().out)

    old = keys("create", "--name", "ci")
    limits = {"AUTH_FAILURES_PER_MINUTE": "100000"}  # or a poll beyond the limit would be answered with 429 for seconds
    with running_service(PRELOAD="false", API_KEYS_FILE=str(path), LOG_LEVEL="DEBUG", **limits) as service:
        service.wait("/livez", 60)
        assert _status(service, old["key"]) == 200
        new = keys("create", "--name", "ci")
        wait_until(lambda: _status(service, new["key"]) == 200)
        assert _status(service, old["key"]) == 200
        keys("revoke", old["id"])
        wait_until(lambda: _status(service, old["key"]) == 401)
        assert _status(service, new["key"]) == 200
        path.write_text("half a rec")
        wait_until(lambda: _status(service, new["key"]) == 200 and "stay valid" in service.log.read_text())
        assert _status(service, new["key"]) == 200
        path.write_text("")
        wait_until(lambda: _status(service, new["key"]) == 401)
        log = service.log.read_text()
    for hidden in (old["key"], new["key"], digest(old["key"]).hex()):
        assert hidden not in log
