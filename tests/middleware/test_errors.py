"""middleware.errors: every error is rendered once, in the shape its route speaks."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from handlers.api.routes import error_form
from middleware.errors import errors_middleware
from middleware.request_keys import ERROR_FORM
from runtime import errors
from runtime.error_response import ErrorForm, error_response
from runtime.errors import ServiceError
from tests.support.fakes import until

Client = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]

SECRET = "/srv/models/secret.gguf: token hf_123"


def _app(failure: BaseException | None, *, size: int = 1000) -> web.Application:
    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        if failure is not None:
            raise failure
        return web.Response(text="ok")

    app = web.Application(middlewares=[errors_middleware], client_max_size=size)
    app[ERROR_FORM] = error_form
    app.router.add_get("/only-get", handler)
    app.router.add_get("/v1/only-get", handler)
    app.router.add_post("/{path:.*}", handler)
    return app


@pytest.mark.parametrize(
    "error",
    [errors.InvalidRequest, errors.Unauthenticated, errors.InsufficientScope, errors.TooManyRequests, ServiceError],
)
@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/generate", "problem"),
        ("/v1/chat/completions", "openai"),
        ("/v1/messages", "anthropic"),
        ("/api/chat", "ollama"),
    ],
)
async def test_errors_are_rendered(
    aiohttp_client: Client, error: type[ServiceError], path: str, form: ErrorForm
) -> None:
    """The answer is what ``error_response`` makes of the error, in the shape of its path: status, fields and body."""
    failure = error("what to do", param="messages.0.role", retry_after=1.5)
    response = await (await aiohttp_client(_app(failure))).post(path)
    expected = error_response(failure, form)
    assert (response.status, await response.read()) == (expected.status, expected.body)
    assert expected.headers.items() <= dict(response.headers).items()


@pytest.mark.parametrize(("path", "openai"), [("/only-get", False), ("/v1/only-get", True)])
async def test_method_not_allowed(aiohttp_client: Client, path: str, openai: bool) -> None:
    """405 says in its Allow header and in words what is possible (RFC 9110 section 15.5.6)."""
    http = await aiohttp_client(_app(None))
    response = await http.delete(path)
    assert response.status == 405
    assert {method.strip() for method in response.headers["Allow"].split(",")} == {"GET", "HEAD", "POST"}
    body = await response.json()
    text = body["error"]["message"] if openai else body["detail"]
    assert "DELETE" in text
    assert "GET" in text


@pytest.mark.parametrize(("path", "openai"), [("/nowhere", False), ("/v1/nowhere", True)])
async def test_not_found(aiohttp_client: Client, path: str, openai: bool) -> None:
    """An unknown path is 404 in the shape of its neighbourhood, and does not repeat what was asked."""
    app = web.Application(middlewares=[errors_middleware])
    app[ERROR_FORM] = error_form
    response = await (await aiohttp_client(app)).get(path)
    body = await response.json()
    assert response.status == 404
    assert (body["error"] if openai else body)["code"] == "not_found"
    assert "nowhere" not in await response.text()


async def test_too_large(aiohttp_client: Client) -> None:
    """A body over the limit is 413 and says the limit."""
    http = await aiohttp_client(_app(None, size=1000))
    response = await http.post("/generate", data=b"x" * 2000)
    assert response.status == 413
    assert "1000 bytes (MAX_BODY_BYTES)" in (await response.json())["detail"]


@pytest.mark.parametrize(
    "failure", [web.HTTPBadRequest(), web.HTTPForbidden(text="not from there"), web.HTTPUnprocessableEntity()]
)
async def test_other_client_errors(aiohttp_client: Client, failure: web.HTTPException) -> None:
    """What aiohttp itself refuses comes in our shape, with its reason."""
    http = await aiohttp_client(_app(failure))
    response = await http.post("/generate")
    assert (response.status, (await response.json())["code"]) == (400, "invalid_request")
    assert (await response.json())["detail"] == failure.text


async def test_redirects_pass(aiohttp_client: Client) -> None:
    """What aiohttp raises but is no error is left alone."""
    http = await aiohttp_client(_app(web.HTTPFound("/elsewhere")))
    response = await http.post("/generate", allow_redirects=False)
    assert (response.status, response.headers["Location"]) == (302, "/elsewhere")


@pytest.mark.parametrize(
    "failure",
    [
        ValueError(SECRET),
        KeyError(SECRET),
        RuntimeError(SECRET),
        TimeoutError(SECRET),
        AssertionError(SECRET),
        OSError(2, SECRET),
        RecursionError(SECRET),
        MemoryError(SECRET),
        UnicodeEncodeError("utf-8", SECRET + "\ud800", 0, 1, SECRET),
        pytest.param(ConnectionRefusedError(SECRET), id="a connection of ours, not the client's"),
    ],
    ids=lambda failure: type(failure).__name__,
)
@pytest.mark.parametrize(("path", "openai"), [("/generate", False), ("/v1/chat/completions", True)])
async def test_unexpected(
    aiohttp_client: Client, caplog: pytest.LogCaptureFixture, failure: Exception, path: str, openai: bool
) -> None:
    """What nobody foresaw is 500 without a word of it, while the log has it all, traceback included."""
    http = await aiohttp_client(_app(failure))
    with caplog.at_level(logging.ERROR):
        response = await http.post(path)
    assert response.status == 500
    body = await response.json()
    assert (body["error"] if openai else body)["code"] == "internal_error"
    seen = await response.text() + str(response.headers)
    for word in ("secret", "hf_123", "srv", type(failure).__name__, "Traceback"):
        assert word not in seen
    (record,) = [record for record in caplog.records if record.name == "warmstart.errors"]
    assert record.exc_info is not None
    assert record.exc_info[1] is failure


async def test_good_answers_pass(aiohttp_client: Client) -> None:
    """What is no error is not touched."""
    response = await (await aiohttp_client(_app(None))).post("/generate")
    assert (response.status, await response.text()) == (200, "ok")


@asynccontextmanager
async def _raw(app: web.Application) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
    try:
        yield reader, writer
    finally:
        writer.close()
        await runner.cleanup()


@pytest.mark.parametrize("failure", [ValueError(SECRET), errors.Draining("shutting down")])
async def test_failing_after_the_answer_began(failure: Exception) -> None:
    """An answer that has begun is cut, so that its reader sees it is not whole; no second answer is put inside it."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        raise failure

    app = web.Application(middlewares=[errors_middleware])
    app[ERROR_FORM] = error_form
    app.router.add_get("/", handler)
    async with _raw(app) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(5):
            answer = await reader.read()
    assert answer.count(b"HTTP/1.1") == 1
    assert b"begun" in answer
    assert not answer.endswith(b"0\r\n\r\n")
    assert b"secret" not in answer


async def test_nobody_is_answered_who_has_gone(caplog: pytest.LogCaptureFixture) -> None:
    """Writing to a client that has gone is no fault of ours, and is not logged as one."""
    ended: list[BaseException] = []
    begun = asyncio.Event()

    @web.middleware
    async def outside(request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            return await handler(request)  # type: ignore[no-any-return]
        except BaseException as error:
            ended.append(error)
            raise

    async def handler(request: web.Request) -> web.StreamResponse:
        begun.set()
        await until(lambda: request.transport is None or request.transport.is_closing())
        raise ConnectionResetError("Cannot write to closing transport")

    app = web.Application(middlewares=[outside, errors_middleware])
    app[ERROR_FORM] = error_form
    app.router.add_get("/", handler)
    runner = web.AppRunner(app, handler_cancellation=False, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await begun.wait()
        writer.close()
        await until(lambda: ended)
    finally:
        await runner.cleanup()
    assert [type(error) for error in ended] == [ConnectionResetError]
    assert not [record for record in caplog.records if record.name == "warmstart.errors"]


async def test_bodies_are_ascii_json(aiohttp_client: Client) -> None:
    """Whatever a message holds, the answer is valid JSON that any client can read."""
    text = "\u2028 \x00 \ud800 日本 <script>"
    response = await (await aiohttp_client(_app(errors.InvalidRequest(text, param=text)))).post("/generate")
    raw = await response.read()
    assert raw.isascii()
    assert json.loads(raw)["detail"] == text
