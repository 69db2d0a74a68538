"""middleware.install: what stands around the handlers, and in which order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

import middleware
from handlers.api.routes import error_form
from handlers.context import reserve_unlimited
from middleware.access import Access
from middleware.access_log import access_log_middleware
from middleware.errors import errors_middleware
from middleware.request_id import request_id_middleware
from middleware.request_keys import CLIENT_IP, ERROR_FORM, REQUEST_ID
from runtime.settings import Settings
from runtime.telemetry.request_scope import RequestScope, request_facts, request_scope

Client = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]


def _app(**settings: Any) -> web.Application:
    app = web.Application(client_max_size=1000)
    middleware.install(app, Settings.load(**settings), Access())

    async def handler(request: web.Request) -> web.Response:
        assert request[REQUEST_ID]
        assert request[CLIENT_IP]
        assert request_facts.get() == {"request_id": request[REQUEST_ID]}
        scope = request_scope.get()
        assert scope.usage is not None
        assert scope.usage.total is None
        assert scope == RequestScope(usage=scope.usage)
        request_scope.set(RequestScope("caller", scope.usage, reserve_unlimited))
        return web.Response(text=(await request.read()).decode())

    app.router.add_route("*", "/", handler)
    return app


def test_order() -> None:
    """Outermost first: name, log, errors, then who it is, whether they may, and only then the body."""
    app = _app()
    first, second, third, *gates = list(app.middlewares)
    assert (first, second, third) == (request_id_middleware, access_log_middleware, errors_middleware)
    assert [gate.__name__ for gate in gates] == ["client_ip", "forwarded", "ip_allowlist", "body_deadline"]  # type: ignore[union-attr]


async def test_allowed_client(aiohttp_client: Client) -> None:
    """Who may call gets through, with everything the handlers count on in place."""
    response = await (await aiohttp_client(_app())).post("/", data=b"hello")
    assert (response.status, await response.text()) == (200, "hello")
    assert response.headers["X-Request-Id"]


async def test_scope_of_each_request(aiohttp_client: Client) -> None:
    """A request gets neither caller, usage nor rate limit of the one before it on the same connection."""
    client = await aiohttp_client(_app())
    for _ in range(2):
        assert (await client.post("/")).status == 200


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        pytest.param({"allowed_ips": "10.0.0.0/8"}, {}, id="not on the list"),
        pytest.param({"allowed_ips": ""}, {}, id="empty list"),
        pytest.param({"trusted_proxies": "127.0.0.1"}, {"X-Forwarded-For": "unknown"}, id="nobody knows who"),
        pytest.param(
            {"trusted_proxies": "127.0.0.1", "disable_ip_restriction": True},
            {"X-Forwarded-For": "unknown"},
            id="nobody knows who, though everybody may",
        ),
        pytest.param({"trusted_proxies": "127.0.0.1"}, {"X-Forwarded-For": "8.8.8.8"}, id="behind a proxy"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/nowhere", "/livez"])
async def test_denied_client(
    aiohttp_client: Client, settings: dict[str, Any], headers: dict[str, str], method: str, path: str
) -> None:
    """403 in the standard shape, named like any other answer, the same on every path and method."""
    http = await aiohttp_client(_app(**settings))
    response = await http.request(method, path, headers=headers | {"X-Request-Id": "mine"})
    assert response.status == 403
    assert response.content_type == "application/problem+json"
    assert response.headers["X-Request-Id"] == "mine"
    body = await response.json()
    assert (body["status"], body["code"], body["title"]) == (403, "client_address_denied", "Forbidden")


async def test_denied_client_of_openai(aiohttp_client: Client) -> None:
    """An OpenAI client is refused in its own language."""
    app = _app(allowed_ips="10.0.0.0/8")
    app[ERROR_FORM] = error_form
    response = await (await aiohttp_client(app)).post("/v1/chat/completions")
    assert response.status == 403
    assert (await response.json())["error"]["code"] == "client_address_denied"


async def test_body_of_a_denied_client_is_not_awaited(aiohttp_client: Client) -> None:
    """A stranger who announces a body and does not send it is refused at once; nobody waits for it."""
    http = await aiohttp_client(_app(allowed_ips="10.0.0.0/8", body_timeout_seconds=60))
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n")
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 403 ")
    writer.close()


async def test_late_body(aiohttp_client: Client) -> None:
    """Somebody known who does not deliver gets 408 in the standard shape, and the connection is closed."""
    http = await aiohttp_client(_app(body_timeout_seconds=0.1))
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n")
    async with asyncio.timeout(15):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in head
    assert b"Connection: close" in head
    assert b"X-Request-Id: " in head
    writer.close()


async def test_every_answer_is_logged(aiohttp_client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Answers, refusals and errors alike pass the access log."""
    caplog.set_level(logging.INFO, "warmstart.access")
    http = await aiohttp_client(_app(trusted_proxies="127.0.0.1"))
    await http.get("/")
    await http.get("/nowhere")
    await http.get("/", headers={"X-Forwarded-For": "8.8.8.8"})
    await http.post("/", data=b"x" * 2000)
    records = [record for record in caplog.records if record.name == "warmstart.access"]
    assert [vars(record)["status"] for record in records] == [200, 404, 403, 413]
