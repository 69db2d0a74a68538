"""HTTPS from handshake to answer: real certificates, real sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from loadtests.service import running_service
from middleware.request_keys import CLIENT_CERTIFICATE, ORIGIN
from tests.middleware.connection.test_gate import listener
from tests.support.fakes import until
from tests.support.wire import PATIENCE, Echo, exchange, head, statuses

LAST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
KEPT = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
CA = trustme.CA()
CLIENTS = trustme.CA()


@web.middleware
async def _mirror(request: web.Request, handler: Any) -> web.StreamResponse:
    return web.Response(body=await request.read())


def client(*, certificate: trustme.LeafCert | None = None, ca: trustme.CA = CA) -> ssl.SSLContext:
    """A client's context, with a certificate of its own if there is one."""
    context = ssl.create_default_context()
    ca.configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context


def issue(path: Path) -> None:
    """A new certificate with its key, in one file."""
    CA.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)


@pytest.fixture
def secured(tmp_path: Path) -> dict[str, Any]:
    """Settings for HTTPS."""
    issue(tmp_path / "cert.pem")
    return {"tls_cert_file": tmp_path / "cert.pem"}


async def test_https(secured: dict[str, Any]) -> None:
    """A client that trusts the authority is answered; the request is https, and the answer asks for it to stay so."""
    echo = Echo(**secured)
    async with echo.listening() as port:
        answer = await exchange(port, LAST, client())
    assert statuses(answer) == [200]
    assert echo.requests[0][ORIGIN] == ("https", "localhost")
    assert head(answer)["strict-transport-security"].startswith("max-age=")


async def test_unreadable_over_https(secured: dict[str, Any]) -> None:
    """What is no HTTP is told so under the same headers."""
    async with Echo(**secured).listening() as port:
        answer = await exchange(port, b"nonsense\r\n\r\n", client())
    assert statuses(answer) == [400]
    assert "strict-transport-security" in head(answer)


async def test_protocols(secured: dict[str, Any]) -> None:
    """HTTP/1.1 is chosen of what the client offers."""
    context = client()
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with Echo(**secured).listening() as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        writer.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_versions(secured: dict[str, Any], version: ssl.TLSVersion) -> None:
    """TLS 1.2 and 1.3 are spoken."""
    context = client()
    context.minimum_version = context.maximum_version = version
    async with Echo(**secured).listening() as port:
        assert statuses(await exchange(port, LAST, context)) == [200]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_versions(secured: dict[str, Any]) -> None:
    """TLS 1.1 is not, even with a client that would take any cipher."""
    context = client()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    echo = Echo(**secured)
    async with echo.listening() as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await exchange(port, LAST, context)
        await until(lambda: listener(echo).limiter.open == 0)


@pytest.mark.parametrize("raw", [LAST, b"\x16\x03\x01\x00\x05hello", b"\x00" * 50], ids=["http", "broken", "nothing"])
async def test_no_tls(secured: dict[str, Any], raw: bytes) -> None:
    """Whatever else comes is closed, is never a request, and gives its place back."""
    echo = Echo(**secured)
    async with echo.listening() as port:
        assert b"HTTP/" not in await exchange(port, raw)
        await until(lambda: listener(echo).limiter.open == 0)
        assert statuses(await exchange(port, LAST, client())) == [200]
    assert len(echo.seen) == 1


async def test_slow_handshakes(secured: dict[str, Any]) -> None:
    """A handshake has the deadline of headers, and counts as a connection while it lasts."""
    echo = Echo(**secured, header_timeout_seconds=0.3, max_connections=2)
    async with echo.listening() as port:
        readers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        await until(lambda: listener(echo).limiter.open == 2)
        assert await exchange(port, b"") == b""
        async with asyncio.timeout(PATIENCE):
            for reader, writer in readers:
                assert await reader.read() == b""
                writer.close()
        await until(lambda: listener(echo).limiter.open == 0)
        assert statuses(await exchange(port, LAST, client())) == [200]


async def test_a_client_that_leaves_during_the_handshake(secured: dict[str, Any]) -> None:
    """Its place is free again, however far it got."""
    echo = Echo(**secured)
    async with echo.listening() as port:
        for sent in (b"", b"\x16\x03\x01"):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            await writer.drain()
            writer.transport.abort()
        await until(lambda: listener(echo).limiter.open == 0)


async def test_places_over_https(secured: dict[str, Any]) -> None:
    """Limits hold for TLS connections too, and they are given back."""
    echo = Echo(**secured, max_connections_per_address=1)
    async with echo.listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client(), server_hostname="localhost")
        writer.write(KEPT)
        await reader.readuntil(b"ok\n")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await exchange(port, LAST, client())
        writer.close()
        await until(lambda: listener(echo).limiter.open == 0)
        assert statuses(await exchange(port, LAST, client())) == [200]


async def test_renewal_while_serving(secured: dict[str, Any], tmp_path: Path) -> None:
    """The next connection sees the new certificate; an open one goes on with the old."""
    echo = Echo(**secured)

    async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client(), server_hostname="localhost")
        return reader, writer, writer.get_extra_info("ssl_object").getpeercert(True)

    async with echo.listening() as port:
        reader, writer, before = await connect(port)
        assert echo.tls is not None
        watch = asyncio.create_task(echo.tls.watch(0.01))
        issue(tmp_path / "new.pem")
        (tmp_path / "new.pem").replace(tmp_path / "cert.pem")
        first = echo.tls.context
        await until(lambda: echo.tls is not None and echo.tls.context is not first)
        _, other, after = await connect(port)
        assert before != after
        writer.write(KEPT)
        async with asyncio.timeout(PATIENCE):
            await reader.readuntil(b"ok\n")
        watch.cancel()
        for open_ in (writer, other):
            open_.close()


@pytest.fixture
def mutual(secured: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Settings for mutual TLS."""
    CLIENTS.cert_pem.write_to_path(tmp_path / "clients.pem")
    return secured | {"tls_client_ca_file": tmp_path / "clients.pem"}


async def test_mutual_tls(mutual: dict[str, Any]) -> None:
    """A client with a certificate of the authority is let in, and its subject stands on the request."""
    echo = Echo(**mutual)
    mine = CLIENTS.issue_cert("batch.example", common_name="batch", organization_name="Example")
    async with echo.listening() as port:
        assert statuses(await exchange(port, LAST, client(certificate=mine))) == [200]
    assert echo.requests[0][CLIENT_CERTIFICATE].startswith("CN=batch")


@pytest.mark.parametrize("shown", ["none", "another authority's", "the server's own"])
async def test_mutual_tls_refuses(mutual: dict[str, Any], shown: str) -> None:
    """Nobody else reaches a handler."""
    others = {"none": None, "another authority's": trustme.CA().issue_cert("x"), "the server's own": CA.issue_cert("x")}
    echo = Echo(**mutual)
    async with echo.listening() as port:
        answer = b""
        with suppress(ssl.SSLError, ConnectionError):  # in TLS 1.3 a client may only see that the connection ends
            answer = await exchange(port, LAST, client(certificate=others[shown]))
        assert answer == b""
        await until(lambda: listener(echo).limiter.open == 0)
    assert echo.seen == []


async def test_a_large_answer_over_https(secured: dict[str, Any]) -> None:
    """An answer of many buffers comes whole to a client that reads slowly."""
    echo = Echo(**secured)
    body = b"x" * 900_000
    raw = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
    echo.app.middlewares.append(_mirror)
    async with echo.listening() as port:
        answer = await exchange(port, raw, client())
    assert answer.endswith(body)


async def test_a_stop_during_a_handshake(secured: dict[str, Any]) -> None:
    """The server ends without waiting for those who only knocked."""
    echo = Echo(**secured, header_timeout_seconds=60)
    async with echo.listening() as port:
        knocking = socket.create_connection(("127.0.0.1", port))
        await until(lambda: listener(echo).limiter.open == 1)
    await until(lambda: listener(echo).limiter.open == 0)
    knocking.close()


async def test_the_real_process(secured: dict[str, Any]) -> None:
    """The service as anyone starts it answers its probes by HTTPS, and says so in its log."""
    with running_service(PRELOAD="false", TLS_CERT_FILE=str(secured["tls_cert_file"])) as service:
        async with asyncio.timeout(6 * PATIENCE):
            while True:
                with suppress(ConnectionError):
                    answer = await exchange(service.port, LAST.replace(b"GET /", b"GET /livez"), client())
                    break
                await asyncio.sleep(0.05)
        assert statuses(answer) == [200]
        assert f"listening on https://127.0.0.1:{service.port}" in service.log.read_text()


def test_the_real_process_with_wrong_files(tmp_path: Path) -> None:
    """It ends at once with the status of wrong settings, and names the setting."""
    with running_service(PRELOAD="false", TLS_CERT_FILE=str(tmp_path / "nothing.pem")) as service:
        assert service.process.wait(6 * PATIENCE) == 2
        assert "TLS_CERT_FILE" in service.log.read_text()
