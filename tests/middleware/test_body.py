"""middleware.body: what of a body is not read; its deadline is in ``test_receiving.py``."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from tests.support.fakes import serving
from tests.support.wire import PATIENCE, Echo, exchange, head, statuses

BOMB = gzip.compress(b"a" * 900_000)


def post(fields: bytes, body: bytes) -> bytes:
    """A request with a body."""
    return b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + fields + b"\r\n" + body


@pytest.mark.parametrize(
    "coding", [b"gzip", b"deflate", b"br", b"zstd", b"GZIP", b"identity, gzip", b"x-unknown", b"\xff"]
)
async def test_compressed_bodies(coding: bytes) -> None:
    """415, which says what is possible; nothing is ever decompressed."""
    echo = Echo()
    raw = post(b"Content-Encoding: " + coding + b"\r\nContent-Length: %d\r\n" % len(BOMB), BOMB)
    async with echo.listening() as port:
        answer = await exchange(port, raw)
    assert statuses(answer) == [415]
    assert head(answer)["accept-encoding"] == "identity"
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "unsupported_media_type"
    assert echo.seen == []


async def test_two_codings() -> None:
    """The second line of the field is read too."""
    raw = post(b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n", b"a")
    async with Echo().listening() as port:
        assert statuses(await exchange(port, raw)) == [415]


async def test_identity() -> None:
    """No coding at all is what the name says, and a coding of no body is nothing to undo."""
    echo = Echo()
    async with echo.listening() as port:
        for raw in (
            post(b"Content-Encoding: Identity\r\nContent-Length: 2\r\n", b"hi"),
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Encoding: gzip\r\n\r\n",
        ):
            assert statuses(await exchange(port, raw)) == [200]
    assert [body for _, _, body in echo.seen] == [b"hi", b""]


async def test_a_length_over_the_limit_is_not_read() -> None:
    """413 at once, though the body never comes, and the connection is closed."""
    echo = Echo(max_body_bytes=1024, body_timeout_seconds=3600)
    async with echo.listening() as port, asyncio.timeout(PATIENCE):
        answer = await exchange(port, post(b"Content-Length: 1025\r\n", b"").replace(b"Connection: close\r\n", b""))
    assert statuses(answer) == [413]
    assert head(answer)["connection"] == "close"
    assert b"MAX_BODY_BYTES" in answer


async def test_no_continue_for_what_is_refused() -> None:
    """A client that asks first is told so before it has sent anything."""
    async with Echo(max_body_bytes=1024).listening() as port:
        for fields in (b"Content-Length: 1025\r\n", b"Content-Length: 5\r\nContent-Encoding: gzip\r\n"):
            answer = await exchange(port, post(b"Expect: 100-continue\r\n" + fields, b""))
            assert statuses(answer)[0] in (413, 415)


async def test_nesting() -> None:
    """JSON deeper than the setting is an invalid request on every route; just as deep is not."""
    import aiohttp

    async with serving(max_json_depth=8) as url, aiohttp.ClientSession(url) as client:
        for path in ("/generate", "/complete", "/chat/completions", "/v1/completions"):
            for depth in (9, 15_000):
                deep = b'{"prompt":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
                answer = await client.post(path, data=deep, headers={"Content-Type": "application/json"})
                assert answer.status == 400
                assert "MAX_JSON_DEPTH" in await answer.text()
        deep = b'{"prompt":"[[[[[[[[[[[[","other":' + b"[" * 7 + b"]" * 7 + b"}"
        answer = await client.post("/generate", data=deep, headers={"Content-Type": "application/json"})
        assert "MAX_JSON_DEPTH" not in await answer.text()
