"""middleware.connection.gate over real sockets: how many connections, and whose they are."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from middleware.connection.gate import ListenerConfig, subject
from middleware.request_keys import CLIENT_IP
from tests.support.fakes import until
from tests.support.wire import PATIENCE, Echo, exchange, statuses

LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
KEPT = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
FROM = b"PROXY TCP4 198.51.100.7 192.0.2.1 50000 443\r\n"
BEHIND: dict[str, Any] = {"proxy_protocol": True, "trusted_proxies": "127.0.0.1", "allowed_ips": "0.0.0.0/0,::/0"}
UNSPECIFIED = b"\r\n\r\n\x00\r\nQUIT\n\x21\x00\x00\x00"
LOCAL = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"


def listener(echo: Echo) -> ListenerConfig:
    """Where the connections of a running server are counted."""
    assert echo.runner is not None
    assert echo.runner.listener is not None
    return echo.runner.listener


async def asked(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has had one answer and is kept."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(KEPT)
    async with asyncio.timeout(PATIENCE):
        await reader.readuntil(b"ok\n")
    return reader, writer


@pytest.mark.parametrize("settings", [{"max_connections": 3}, {"max_connections_per_address": 3}], ids=str)
async def test_one_too_many(settings: dict[str, Any]) -> None:
    """It is closed without an answer; those before it go on, and the place of one that ends is free again."""
    echo = Echo(**settings)
    async with echo.listening() as port:
        kept = [await asked(port) for _ in range(3)]
        assert await exchange(port, LAST) == b""
        for reader, writer in kept:
            writer.write(KEPT)
            await reader.readuntil(b"ok\n")
        kept[0][1].close()
        await until(lambda: listener(echo).limiter.open == 2)
        assert statuses(await exchange(port, LAST)) == [200]
        for _, writer in kept:
            writer.close()
        await until(lambda: listener(echo).limiter.open == 0)
        assert not listener(echo).limiter.by_address


async def test_a_trusted_proxy_is_counted_in_all_only() -> None:
    """It brings many clients; the limit of one address is not for it."""
    echo = Echo(max_connections=3, max_connections_per_address=1, trusted_proxies="127.0.0.1")
    async with echo.listening() as port:
        kept = [await asked(port) for _ in range(3)]
        assert await exchange(port, LAST) == b""
        for _, writer in kept:
            writer.close()


async def test_unix_sockets_are_counted_in_all_only(tmp_path: Path) -> None:
    """They have no address."""
    echo = Echo(max_connections_per_address=1)
    async with echo.listening():
        assert echo.runner is not None
        await web.UnixSite(echo.runner, str(tmp_path / "socket")).start()
        writers = []
        for _ in range(3):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "socket")
            writer.write(KEPT)
            await reader.readuntil(b"ok\n")
            writers.append(writer)
        for writer in writers:
            writer.close()


@pytest.mark.parametrize("end", ["fin", "rst", "deadline", "garbage", "answered"])
async def test_whatever_ends_a_connection_frees_its_place(end: str) -> None:
    """A connection that is closed, reset, too slow, unreadable or done leaves no trace in the counts."""
    echo = Echo(header_timeout_seconds=0.2)
    async with echo.listening() as port:
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            if end == "fin":
                writer.close()
            elif end == "rst":
                writer.write(b"GET / HT")
                writer.transport.abort()
            elif end == "deadline":
                writer.write(b"GET / HT")
                assert await reader.read() == b""
            else:
                writer.write(b"\x00\r\n\r\n" if end == "garbage" else LAST)
                await reader.read()
            writer.close()
        await until(lambda: listener(echo).limiter.open == 0)
        assert not listener(echo).limiter.by_address


async def test_the_source_is_the_client() -> None:
    """What the header names is who the allowlist, the log and the limits see."""
    echo = Echo(**BEHIND)
    async with echo.listening() as port:
        assert statuses(await exchange(port, FROM + LAST)) == [200]
    assert str(echo.requests[0][CLIENT_IP]) == "198.51.100.7"
    assert echo.requests[0].remote == "198.51.100.7"


async def test_the_source_is_gated() -> None:
    """An address that is not allowed does not get in by a proxy that is."""
    async with Echo(**(BEHIND | {"allowed_ips": "127.0.0.1"})).listening() as port:
        assert statuses(await exchange(port, FROM + LAST)) == [403]


async def test_a_header_in_pieces() -> None:
    """Byte by byte, and a request right behind it in the same packet."""
    echo = Echo(**BEHIND)
    async with echo.listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for byte in FROM[:-1]:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(FROM[-1:] + LAST)
        async with asyncio.timeout(PATIENCE):
            assert statuses(await reader.read()) == [200]
        writer.close()
    assert str(echo.requests[0][CLIENT_IP]) == "198.51.100.7"


@pytest.mark.parametrize(
    "raw",
    [LAST, FROM.replace(b"TCP4", b"TCP9") + LAST, b"PROXY UNKNOWN " + b"a" * 200, b"\x16\x03\x01\x02\x00"],
    ids=["no header", "malformed", "too long", "tls"],
)
async def test_without_a_header_nobody_gets_in(raw: bytes) -> None:
    """A trusted peer that speaks something else is closed at once, without an answer."""
    echo = Echo(**BEHIND)
    async with echo.listening() as port:
        assert await exchange(port, raw) == b""
        await until(lambda: listener(echo).limiter.open == 0)
    assert echo.seen == []


async def test_only_trusted_proxies_may_use_it(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever else connects is closed, so that nobody names himself."""
    echo = Echo(**(BEHIND | {"trusted_proxies": "10.0.0.1"}))
    async with echo.listening() as port:
        assert await exchange(port, FROM + LAST) == b""
    assert echo.seen == []
    assert "127.0.0.1 is not a trusted proxy" in caplog.text


async def test_without_the_setting_it_is_no_http() -> None:
    """A header that was not expected is an unreadable request, whoever sends it."""
    async with Echo(trusted_proxies="127.0.0.1").listening() as port:
        assert statuses(await exchange(port, FROM + LAST)) == [400]


async def test_a_header_that_does_not_come() -> None:
    """It has the deadline of a request's headers."""
    echo = Echo(**(BEHIND | {"header_timeout_seconds": 0.2}))
    async with echo.listening() as port:
        assert await exchange(port, FROM[:10]) == b""
        assert await exchange(port, b"") == b""
        await until(lambda: listener(echo).limiter.open == 0)


@pytest.mark.parametrize(
    ("header", "sent", "client"),
    [
        pytest.param(FROM, "9.9.9.9", "198.51.100.7", id="a client's own word"),
        pytest.param(FROM.replace(b"198.51.100.7", b"127.0.0.1"), "9.9.9.9", "9.9.9.9", id="another trusted proxy's"),
        pytest.param(b"PROXY UNKNOWN\r\n", "9.9.9.9", "127.0.0.1", id="a client nobody knows"),
        pytest.param(UNSPECIFIED, "9.9.9.9", "127.0.0.1", id="the same, version 2"),
        pytest.param(LOCAL, "9.9.9.9", "9.9.9.9", id="the proxy's own"),
    ],
)
async def test_who_may_forward(header: bytes, sent: str, client: str) -> None:
    """X-Forwarded-For is judged by the source that the header names; one that names nobody vouches for nothing."""
    echo = Echo(**BEHIND)
    raw = header + LAST.replace(b"\r\n\r\n", f"\r\nX-Forwarded-For: {sent}\r\n\r\n".encode())
    async with echo.listening() as port:
        assert statuses(await exchange(port, raw)) == [200]
    assert str(echo.requests[0][CLIENT_IP]) == client


async def test_sources_are_counted() -> None:
    """Behind a proxy the limit of one address is for those that its headers name."""
    echo = Echo(**BEHIND, max_connections_per_address=1)
    async with echo.listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(FROM + KEPT)
        await reader.readuntil(b"ok\n")
        assert await exchange(port, FROM + LAST) == b""
        assert statuses(await exchange(port, FROM.replace(b".7 ", b".8 ") + LAST)) == [200]
        writer.close()


async def test_the_end_of_the_server_ends_those_who_wait() -> None:
    """A connection that has not shown its header does not outlive the server."""
    echo = Echo(**BEHIND, header_timeout_seconds=60)
    async with echo.listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: listener(echo).limiter.open == 1)
    async with asyncio.timeout(PATIENCE):
        with suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(
    ("certificate", "text"),
    [
        (None, None),
        ({}, None),
        ({"subject": ((("organizationName", "Ex"),), (("commonName", "me"),))}, "CN=me,O=Ex"),
        ({"subject": ((("commonName", "a,b\n\u2028"),),)}, "CN=a\\,b??"),
        ({"subject": ()}, ""),
    ],
)
def test_subject(certificate: dict[str, object] | None, text: str | None) -> None:
    """Most specific first, separators escaped, and no line break gets into a log."""
    assert subject(certificate) == text


async def test_nothing_is_logged_of_what_was_sent(caplog: pytest.LogCaptureFixture) -> None:
    """A malformed header's bytes do not reach the log."""
    caplog.set_level(logging.DEBUG)
    async with Echo(**BEHIND).listening() as port:
        await exchange(port, b"PROXY TCP4 secret-canary\r\n")
    assert "secret-canary" not in caplog.text
