"""middleware.connection.runner over real sockets. Deadlines are short, the bounds of the tests generous."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from aiohttp import web

from app import create_app
from middleware.body import body_deadline_middleware, set_connection_headers
from middleware.connection.gate import ListenerConfig
from middleware.connection.limits import ConnectionLimiter
from middleware.connection.runner import DeadlineRunner
from middleware.response_headers import header_signal
from runtime.errors import ServiceError
from runtime.settings import Settings
from tests.support.fakes import fake_context, until
from tests.support.wire import Echo, exchange

ENDED: web.AppKey[asyncio.Event] = web.AppKey("ended", asyncio.Event)
DEADLINE = 0.3  # what the service is told
PATIENCE = 8.0  # by when it must have acted
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@web.middleware
async def _render(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        return await handler(request)  # type: ignore[no-any-return]
    except ServiceError as error:
        return web.json_response(error.problem(), status=error.status)


async def _ok(request: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _echo(request: web.Request) -> web.Response:
    return web.Response(text=f"{len(await request.read())} read")


async def _stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(6):
        await asyncio.sleep(DEADLINE / 2)
        await response.write(b"tick ")
    await response.write_eof(b"end.")
    return response


async def _slow(request: web.Request) -> web.Response:
    await asyncio.sleep(3 * DEADLINE)
    return web.Response(text="slept")


def _app(body_timeout: float) -> web.Application:
    app = web.Application(middlewares=[_render, body_deadline_middleware(body_timeout)], client_max_size=5000)
    app.on_response_prepare.append(header_signal(set_connection_headers))
    app.router.add_get("/", _ok)
    app.router.add_route("*", "/echo", _echo)
    app.router.add_route("*", "/stream", _stream)
    app.router.add_route("*", "/slow", _slow)
    return app


@asynccontextmanager
async def _served(runner: web.AppRunner) -> AsyncIterator[Callable[[], Any]]:
    """A way to open connections to the runner's application."""
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    opened: list[asyncio.StreamWriter] = []

    async def connect() -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
        opened.append(writer)
        return reader, writer

    try:
        yield connect
    finally:
        for writer in opened:
            writer.close()
        await runner.cleanup()


def _runner(*, body_timeout: float = DEADLINE, **kwargs: Any) -> DeadlineRunner:
    options: dict[str, Any] = {"header_timeout": DEADLINE, "keepalive_timeout": 60, "lingering_time": DEADLINE}
    return DeadlineRunner(_app(body_timeout), **(options | kwargs))


async def _drip_until_closed(connection: Connection, drip: bytes = b"a") -> bytes:
    """Send one byte at a time, far more often than the deadline, until the server closes; what it answered."""
    reader, writer = connection

    async def drip_on() -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(drip)
                await writer.drain()
                await asyncio.sleep(DEADLINE / 10)

    dripping = asyncio.create_task(drip_on())
    try:
        async with asyncio.timeout(PATIENCE):
            answer = b""
            with suppress(ConnectionError):
                while chunk := await reader.read(65_536):
                    answer += chunk
            return answer
    finally:
        dripping.cancel()


async def _first_request(connection: Connection) -> None:
    reader, writer = connection
    writer.write(HEAD + b"\r\n")
    async with asyncio.timeout(PATIENCE):
        await reader.readuntil(b"ok")


async def test_dripping_headers_of_a_first_request() -> None:
    """Headers that come byte by byte end with the deadline, though no single byte is late."""
    async with _served(_runner()) as connect:
        connection = await connect()
        connection[1].write(HEAD + b"X: ")
        assert await _drip_until_closed(connection) == b""


async def test_dripping_empty_lines() -> None:
    """Empty lines before a request line, which servers skip (RFC 9112 section 2.2), are no way around it."""
    async with _served(_runner()) as connect:
        assert await _drip_until_closed(await connect(), b"\r\n") == b""


async def test_a_connection_that_never_sends_anything() -> None:
    """A connection without a first request gets the header deadline, not the idle time."""
    async with _served(_runner()) as connect, asyncio.timeout(PATIENCE):
        reader, _ = await connect()
        assert await reader.read() == b""


async def test_dripping_headers_of_a_second_request() -> None:
    """The deadline holds anew for each request on a kept connection."""
    async with _served(_runner()) as connect:
        connection = await connect()
        await _first_request(connection)
        connection[1].write(HEAD + b"X: ")
        assert await _drip_until_closed(connection) == b""


async def test_an_idle_connection_keeps_its_idle_time() -> None:
    """Between requests the longer idle time counts, and the next request is answered."""
    async with _served(_runner()) as connect:
        connection = await connect()
        for _ in range(3):
            await _first_request(connection)
            await asyncio.sleep(2 * DEADLINE)
        await _first_request(connection)


async def test_idle_time_still_ends() -> None:
    """aiohttp's own idle limit still closes a connection on which nothing comes."""
    async with _served(_runner(keepalive_timeout=2 * DEADLINE)) as connect:
        connection = await connect()
        await _first_request(connection)
        async with asyncio.timeout(PATIENCE):
            assert await connection[0].read() == b""


async def test_without_idle_time() -> None:
    """keepalive_timeout=0 leaves aiohttp without any limit on a first request; ours holds."""
    async with _served(_runner(keepalive_timeout=0)) as connect:
        connection = await connect()
        connection[1].write(HEAD + b"X: ")
        assert await _drip_until_closed(connection) == b""


@pytest.mark.parametrize("keepalive_timeout", [60, DEADLINE / 2])
@pytest.mark.parametrize(("path", "end"), [("stream", b"end."), ("slow", b"slept")])
async def test_a_handler_at_work_is_untouched(path: str, end: bytes, keepalive_timeout: float) -> None:
    """A stream or a handler that lasts several deadlines ends whole, first and second on its connection."""
    async with _served(_runner(keepalive_timeout=keepalive_timeout)) as connect:
        reader, writer = await connect()
        for _ in range(2):
            writer.write(f"GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            async with asyncio.timeout(PATIENCE):
                assert end in await reader.readuntil(end)
                if path == "stream":
                    await reader.readuntil(b"0\r\n\r\n")


async def test_bytes_sent_during_a_stream_do_not_end_it() -> None:
    """The start of a next request, dripped while a stream runs, waits; it is limited only once its turn has come."""
    async with _served(_runner()) as connect:
        connection = await connect()
        connection[1].write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n" + HEAD + b"X: ")
        assert b"end." in await _drip_until_closed(connection)


async def test_a_slow_request_within_its_deadline() -> None:
    """Bytes that come slowly but in time are a request like another."""
    async with _served(_runner(header_timeout=PATIENCE)) as connect:
        reader, writer = await connect()
        for byte in HEAD + b"\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(DEADLINE / 50)
        async with asyncio.timeout(PATIENCE):
            await reader.readuntil(b"ok")


@pytest.mark.parametrize("path", ["echo", "stream", "slow"])
@pytest.mark.parametrize("second", [False, True])
async def test_dripping_body(path: str, second: bool) -> None:
    """A body that is not complete in time is answered with 408 and a closed connection, before the handler runs."""
    async with _served(_runner()) as connect:
        connection = await connect()
        if second:
            await _first_request(connection)
        connection[1].write(POST.replace(b"echo", path.encode()))
        head, _, body = (await _drip_until_closed(connection)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in head.lower()
        assert json.loads(body)["code"] == "request_timeout"


async def test_dripping_chunks() -> None:
    """A chunked body has no length to wait for; the deadline is the same."""
    async with _served(_runner()) as connect:
        connection = await connect()
        connection[1].write(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert (await _drip_until_closed(connection, b"1\r\na\r\n")).startswith(b"HTTP/1.1 408 ")


async def test_what_follows_a_late_body_is_no_request() -> None:
    """After a 408 the rest of the connection is dropped, so a late body cannot be read as a request."""
    async with _served(_runner()) as connect:
        connection = await connect()
        connection[1].write(POST)
        answer = await _drip_until_closed(connection, HEAD + b"\r\n")
        assert answer.count(b"HTTP/1.1") == 1


async def test_a_body_in_time() -> None:
    """A body in two parts is read once and the connection kept."""
    async with _served(_runner(body_timeout=PATIENCE)) as connect:
        reader, writer = await connect()
        for _ in range(2):
            writer.write(POST + b"a" * 400)
            await writer.drain()
            await asyncio.sleep(DEADLINE / 10)
            writer.write(b"a" * 600)
            async with asyncio.timeout(PATIENCE):
                assert b" 200 OK" in await reader.readuntil(b"1000 read")


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 6000\r\n\r\n" + b"a" * 6000,
            413,
            "payload_too_large",
            id="too large",
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
            415,
            "unsupported_media_type",
            id="gzip",
        ),
    ],
)
async def test_a_wrong_body(request_bytes: bytes, status: int, code: str) -> None:
    """Too large and undecodable bodies are errors of the one tree."""
    async with _served(_runner()) as connect:
        reader, writer = await connect()
        writer.write(request_bytes)
        async with asyncio.timeout(PATIENCE):
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readuntil(b"}")
    assert f" {status} ".encode() in head
    assert json.loads(body)["code"] == code


async def test_what_aiohttp_does_alone() -> None:
    """The premise: aiohttp bounds headers by keepalive_timeout, absolutely, and a body that is read not at all."""
    app = web.Application()
    app.router.add_get("/", _ok)
    app.router.add_post("/echo", _echo)
    async with _served(web.AppRunner(app, keepalive_timeout=DEADLINE)) as connect:
        first = await connect()
        first[1].write(HEAD + b"X: ")
        assert await _drip_until_closed(first) == b""
        second = await connect()
        await _first_request(second)
        second[1].write(HEAD + b"X: ")
        assert await _drip_until_closed(second) == b""
        body = await connect()
        body[1].write(POST)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(4 * DEADLINE):
                await body[0].read(1)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nAuthoriz ation: secret-canary\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["version", "tls", "negative length", "odd header name", "two framings"],
)
async def test_what_is_no_http_gets_a_problem_and_leaves_no_bytes_in_the_log(
    raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A 400 in the standard shape and a closed connection; neither answer nor log repeats what was sent."""
    caplog.set_level(logging.DEBUG)
    runner = DeadlineRunner(web.Application(), header_timeout=5, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        writer.write(raw)
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
    finally:
        await runner.cleanup()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == b"400"
    assert b"application/problem+json" in head
    assert json.loads(body)["code"] == "invalid_request"
    assert "secret-canary" not in caplog.text + answer.decode()
    assert "Traceback" not in caplog.text


async def _raw(raw: bytes, *, allowed: str, enough: bytes) -> bytes:
    """What a server with the whole edge answers, read until ``enough`` or the end."""
    settings = Settings.load(allowed_ips=allowed)
    runner = DeadlineRunner(
        create_app(settings, ctx=fake_context()), header_timeout=5, access_log=None, handler_cancellation=True
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        head, _, body = raw.partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        answer = b""
        async with asyncio.timeout(20):
            while enough not in answer and (more := await reader.read(1000)):
                answer += more
                if body and b"100 Continue" in answer:
                    writer.write(body)
                    body = b""
        writer.close()
    finally:
        await runner.cleanup()
    return answer


_EXPECTING = (
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 14\r\n"
    b'Expect: 100-continue\r\n\r\n{"prompt":"x"}'
)


async def test_an_expected_continue_is_sent_before_the_body_is_read() -> None:
    """A client that waits for 100 Continue with its body gets it, then the answer."""
    answer = await _raw(_EXPECTING, allowed="127.0.0.1", enough=b"Hello there.")
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


async def test_a_denied_address_is_not_told_to_go_on() -> None:
    """The allowlist answers first: 403 in the standard shape, no 100 Continue."""
    answer = await _raw(_EXPECTING, allowed="10.0.0.0/8", enough=b"client_address_denied")
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"X-Request-Id" in answer


async def test_another_expectation_is_ignored() -> None:
    """A server may ignore what it does not know (RFC 9110 section 10.1.1); no path leads around the middlewares."""
    raw = b"GET /livez HTTP/1.1\r\nHost: x\r\nExpect: nonsense\r\n\r\n"
    assert (await _raw(raw, allowed="127.0.0.1", enough=b"alive")).startswith(b"HTTP/1.1 200")
    assert (await _raw(raw, allowed="10.0.0.0/8", enough=b"denied")).startswith(b"HTTP/1.1 403")


async def test_the_last_request_of_a_connection() -> None:
    """After so many requests the answer says close and the connection ends; what is pipelined behind is not read."""
    async with _served(_runner(keepalive_requests=3)) as connect, asyncio.timeout(PATIENCE):
        reader, writer = await connect()
        writer.write((HEAD + b"\r\n") * 5)
        answers = (await reader.read()).split(b"HTTP/1.1 200 OK")[1:]
    assert [b"Connection: close" in answer for answer in answers] == [False, False, True]


async def _flood(request: web.Request) -> web.StreamResponse:
    """An answer without an end, as fast as the client takes it."""
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b"a" * 10_000)
    finally:
        request.app[ENDED].set()


async def _large(request: web.Request) -> web.Response:
    """An answer that no socket buffer holds."""
    request.app[ENDED].set()
    return web.Response(body=b"a" * 20_000_000)


@asynccontextmanager
async def _unread(**runner: Any) -> AsyncIterator[tuple[Any, Callable[[], Any]]]:
    app = _app(PATIENCE)
    app[ENDED] = asyncio.Event()
    app.router.add_get("/flood", _flood)
    app.router.add_get("/large", _large)
    listener = ListenerConfig(ConnectionLimiter(10, 10, []), PATIENCE)
    made = DeadlineRunner(app, header_timeout=PATIENCE, listener=listener, handler_cancellation=True, **runner)
    async with _served(made) as connect:
        yield made, connect


@pytest.mark.parametrize("path", ["flood", "large"])
async def test_a_client_that_stops_reading(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its connection is cut, its handler ends, and its place is free, though it never closes."""
    caplog.set_level(logging.INFO)
    async with _unread(write_timeout=DEADLINE) as (runner, connect):
        _, writer = await connect()
        writer.transport.pause_reading()
        writer.write(f"GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await asyncio.wait_for(runner.app[ENDED].wait(), PATIENCE)
        await until(lambda: runner.listener.limiter.open == 0)
    assert "stopped reading" in caplog.text


async def test_a_client_that_stops_reading_the_end_of_a_connection() -> None:
    """Also when the server has closed already and only the rest is to be sent."""
    async with _unread(write_timeout=DEADLINE) as (runner, connect):
        _, writer = await connect()
        writer.transport.pause_reading()
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await asyncio.wait_for(runner.app[ENDED].wait(), PATIENCE)
        await until(lambda: runner.listener.limiter.open == 0)


async def test_a_client_that_reads_slowly() -> None:
    """As long as it takes something now and then, it gets all of it, far beyond the deadline."""
    async with _unread(write_timeout=DEADLINE) as (_, connect):
        reader, writer = await connect()
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(4 * PATIENCE):
            await reader.readuntil(b"\r\n\r\n")
            left = 20_000_000
            while left:
                left -= len(await reader.read(400_000 if left > 10_000_000 else left))
                await asyncio.sleep(DEADLINE / 10 if left > 10_000_000 else 0)


async def test_the_settings_reach_the_connection() -> None:
    """KEEPALIVE_SECONDS ends an idle connection, KEEPALIVE_REQUESTS a busy one."""
    async with Echo(keepalive_seconds=DEADLINE).listening() as port:
        assert (await exchange(port, HEAD + b"\r\n")).count(b" 200 OK") == 1
    async with Echo(keepalive_requests=2).listening() as port:
        assert (await exchange(port, (HEAD + b"\r\n") * 5)).count(b" 200 OK") == 2
