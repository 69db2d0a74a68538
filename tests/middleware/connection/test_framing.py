"""middleware.connection.framing, and aiohttp's parser in front of it: what two servers could read in two ways is not
served.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import pytest
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from middleware.connection.framing import LINE_ROUND_TARGET, unreadable
from middleware.request_keys import ORIGIN
from tests.support.wire import PATIENCE, Echo, exchange, head, statuses

NEXT = b"GET /smuggled HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"


def get(target: bytes = b"/", fields: bytes = b"", version: bytes = b"1.1", host: bytes = b"Host: x\r\n") -> bytes:
    """A request without a body."""
    return b"GET " + target + b" HTTP/" + version + b"\r\n" + host + fields + b"\r\n"


def post(fields: bytes, body: bytes, version: bytes = b"1.1") -> bytes:
    """A request with a body, and one behind it that would be smuggled."""
    return b"POST / HTTP/" + version + b"\r\nHost: x\r\n" + fields + b"\r\n" + body + NEXT


def coded(value: bytes, version: bytes = b"1.1") -> bytes:
    """A chunked body under some Transfer-Encoding."""
    return post(b"Transfer-Encoding: " + value + b"\r\n", CHUNKS, version)


def chunked(body: bytes) -> bytes:
    """A body in chunks that are not quite."""
    return post(b"Transfer-Encoding: chunked\r\n", body)


REFUSED = {
    "CL.TE": post(b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\nG"),
    "TE.CL": post(b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", b"5c\r\n"),
    "TE.TE": post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", CHUNKS),
    "TE twice": post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", CHUNKS),
    "chunked, chunked": coded(b"chunked, chunked"),
    "gzip, chunked": coded(b"gzip, chunked"),
    "chunked, gzip": coded(b"chunked, gzip"),
    "identity": coded(b"identity"),
    "xchunked": coded(b"xchunked"),
    "no coding": coded(b""),
    "chunked behind VT": coded(b"\x0bchunked"),
    "chunked in quotes": coded(b'"chunked"'),
    "chunked with a parameter": coded(b"chunked;q=1"),
    "chunked with a Kelvin sign": coded("chun\u212aed".encode()),
    "HTTP/1.0 and chunked": coded(b"chunked\r\nConnection: keep-alive", b"1.0"),
    "two lengths": post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello"),
    "one length twice": post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"),
    "a list of lengths": post(b"Content-Length: 5, 5\r\n", b"hello"),
    "+5": post(b"Content-Length: +5\r\n", b"hello"),
    "-5": post(b"Content-Length: -5\r\n", b"hello"),
    "0x5": post(b"Content-Length: 0x5\r\n", b"hello"),
    "0_5": post(b"Content-Length: 0_5\r\n", b"hello"),
    "5 5": post(b"Content-Length: 5 5\r\n", b"hello"),
    "no length": post(b"Content-Length: \r\n", b""),
    "Arabic digits": post("Content-Length: \u0665\r\n".encode(), b"hello"),
    "2^64": post(b"Content-Length: 18446744073709551616\r\n", b"hello"),
    "2^64 - 1": post(b"Content-Length: 18446744073709551615\r\n", b"hello"),
    "bare LF": b"GET / HTTP/1.1\nHost: x\n\n",
    "bare LF in a field": get(fields=b"X: a\nTransfer-Encoding: chunked\r\n"),
    "bare LF at the end": b"GET / HTTP/1.1\r\nHost: x\r\n\n",
    "bare CR": get(fields=b"X: a\rY: b\r\n"),
    "obsolete folding": get(fields=b"X: a\r\n b\r\n"),
    "folded coding": post(b"Transfer-Encoding:\r\n chunked\r\n", CHUNKS),
    "blank before the first field": b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    "blank before the colon": post(b"Transfer-Encoding : chunked\r\n", CHUNKS),
    "NUL in a value": get(fields=b"X: a\x00b\r\n"),
    "NUL in a name": get(fields=b"X\x00: a\r\n"),
    "NUL in the target": get(b"/\x00"),
    "control character": get(fields=b"X: a\x01b\r\n"),
    "empty name": get(fields=b": a\r\n"),
    "no colon": get(fields=b"abc\r\n"),
    "chunk of LF lines": chunked(b"5\nhello\n0\n\n"),
    "chunk ending in LF": chunked(b"5\r\nhello\n0\r\n\r\n"),
    "chunk of another length": chunked(b"5\r\nhelloXX0\r\n\r\n"),
    "chunk size with a sign": chunked(b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with 0x": chunked(b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with a blank": chunked(b"5 \r\nhello\r\n0\r\n\r\n"),
    "chunk size beyond 64 bits": chunked(b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    "chunk extension with CR": chunked(b"5;a\rX\r\nhello\r\n0\r\n\r\n"),
    "chunk extension with LF": chunked(b"5;a\nhello\r\n0\r\n\r\n"),
    "length in a trailer": chunked(b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "said to be HTTP/0.9": get(version=b"0.9"),
    "HTTP/1.2": get(version=b"1.2"),
    "said to be HTTP/2": get(version=b"2.0"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http/1.1": b"GET / http/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "CONNECT": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + NEXT,
    "another's target": get(b"http://evil/"),
    "a target that begins alike": get(b"http://xy/"),
    "a target with a user": get(b"http://x@evil/"),
    "a target of another scheme": get(b"ftp://x/"),
    "a fragment": get(b"/#there"),
    "tabs in the request line": b"GET\t/\tHTTP/1.1\r\nHost: x\r\n\r\n",
    "no method": b" / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no host": get(host=b""),
    "two hosts": get(host=b"Host: x\r\nHost: y\r\n"),
    "behind a close": get(fields=b"Connection: close\r\n").replace(b"GET /", b"BAD /") + NEXT,
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
async def test_refused(raw: bytes) -> None:
    """One 400 in the standard shape and a closed connection; no handler ever sees it or what follows it."""
    echo = Echo()
    async with echo.listening() as port:
        answer = await exchange(port, raw)
    assert statuses(answer) == [400]
    assert echo.seen == []
    assert head(answer)["content-type"].startswith("application/problem+json")
    assert head(answer)["connection"] == "close"
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "invalid_request"


SERVED = {
    "plain length": (post(b"Content-Length: 5\r\n", b"hello"), b"hello"),
    "chunks": (coded(b"chunked"), b"hello"),
    "capitals": (coded(b"CHUNKED"), b"hello"),
    "chunk extension": (chunked(b"5;a=b\r\nhello\r\n0\r\n\r\n"), b"hello"),
    "trailer": (chunked(b"5\r\nhello\r\n0\r\nX-Trailer: y\r\n\r\n"), b"hello"),
    "other headers alike": (post(b"Content_Length: 3\r\nTransfer_Encoding: chunked\r\n", b""), b""),
}


@pytest.mark.parametrize(("raw", "body"), SERVED.values(), ids=SERVED.keys())
async def test_served(raw: bytes, body: bytes) -> None:
    """What everyone reads alike is served, and so is the request behind it."""
    echo = Echo()
    async with echo.listening() as port:
        answer = await exchange(port, raw)
    assert statuses(answer) == [200, 200]
    assert echo.seen == [("POST", "/", body), ("GET", "/smuggled", b"")]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"tcp"])
@pytest.mark.parametrize("later", [b"", NEXT], ids=["in one packet", "in two"])
async def test_upgrades(protocol: bytes, later: bytes) -> None:
    """A wish to upgrade is not granted: an answer to the request as it is, the last one; nothing behind it is read."""
    echo = Echo()
    fields = b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\nContent-Length: 5\r\n"
    raw = post(fields, b"hello").removesuffix(NEXT if later else b"")
    async with echo.listening() as port, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(raw)
        answer = await reader.readuntil(b"ok\n")
        with suppress(ConnectionError):
            writer.write(later)
            answer += await reader.read()
        writer.close()
    assert statuses(answer) == [200]
    assert head(answer)["connection"] == "close"
    assert echo.seen == [("POST", "/", b"hello")]


async def test_trailers_are_dropped() -> None:
    """A field behind the body does not become one of the request's headers."""
    echo = Echo()
    async with echo.listening() as port:
        await exchange(port, chunked(b"0\r\nX-Api-Key: forged\r\n\r\n"))
    assert "X-Api-Key" not in echo.requests[0].headers


@pytest.mark.parametrize(
    ("target", "path"),
    [(b"http://x/a?b=c", "/a?b=c"), (b"HTTP://X", "/"), (b"https://x?b", "/?b"), (b"/a%2e?b", "/a%2e?b")],
)
async def test_absolute_form(target: bytes, path: str) -> None:
    """A target that repeats the Host header is read as the path it names (RFC 9112 section 3.2.2)."""
    echo = Echo()
    async with echo.listening() as port:
        assert statuses(await exchange(port, get(target, b"Connection: close\r\n"))) == [200]
    assert echo.requests[0].raw_path == path
    assert str(echo.requests[0].rel_url) == path
    assert echo.requests[0][ORIGIN].authority == "x"


LIMITS = {
    "request line": (get(b"/" + b"a" * 600), 414, "MAX_HEADER_BYTES"),
    "field": (get(fields=b"X: " + b"a" * 600 + b"\r\n"), 431, "MAX_HEADER_BYTES"),
    "field's name": (get(fields=b"a" * 600 + b": x\r\n"), 431, "MAX_HEADER_BYTES"),
    "fields": (get(fields=b"X: a\r\n" * 20), 431, "MAX_HEADERS"),
    "all fields": (get(fields=(b"X: " + b"a" * 500 + b"\r\n") * 5), 431, "MAX_HEADER_BYTES"),
    "incomplete fields": (get(fields=(b"X: " + b"a" * 500 + b"\r\n") * 5)[:-2], 431, "MAX_HEADER_BYTES"),
}


@pytest.mark.parametrize(("raw", "status", "setting"), LIMITS.values(), ids=LIMITS.keys())
async def test_limits(raw: bytes, status: int, setting: str) -> None:
    """Each limit of a request's head has its own status, names its setting, and closes the connection."""
    echo = Echo(max_header_bytes=512, max_headers=10)
    async with echo.listening() as port:
        answer = await exchange(port, raw)
    assert statuses(answer) == [status]
    assert setting in answer.decode()
    assert echo.seen == []


@pytest.mark.parametrize("size", [300, 512 - LINE_ROUND_TARGET])
async def test_within_the_limits(size: int) -> None:
    """A request line and fields just below the limits are served."""
    echo = Echo(max_header_bytes=512, max_headers=10)
    async with echo.listening() as port:
        raw = get(b"/" + b"a" * (size - 1), b"X: " + b"a" * size + b"\r\nConnection: close\r\n")
        assert statuses(await exchange(port, raw)) == [200]


def test_unreadable() -> None:
    """The parser's complaints by kind; their text, which repeats the request, goes nowhere."""
    line, field = (LineTooLong(b"secret-canary", limit) for limit in (512 - LINE_ROUND_TARGET, 512))
    many, other = BadHttpMessage("Too many headers received"), BadHttpMessage("secret-canary")
    errors = [unreadable(error, 512, 10) for error in (line, field, many, other, None)]
    assert [error.status for error in errors] == [414, 431, 431, 400, 400]
    assert "secret-canary" not in repr([error.problem() for error in errors])
