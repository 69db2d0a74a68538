"""deploy.ray.asgi: the service through ASGI, and what happens when a replica ends within a request."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from deploy.ray import asgi
from deploy.ray.asgi import AsgiApplication, Backend, ForwardedRequest, ReplicaLost
from runtime.settings import Settings
from tests.support.asgi import local_backend, serving_asgi
from tests.support.fakes import FakeEngine, fake_context, serving, until

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
COMMENT, EVENT = b": keep-alive\n\n", b'data: {"text":"a"}\n\n'
ASK: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "Time?"}]}
# Of each connection, or of the server in front.
OWN = {"date", "server", "connection", "transfer-encoding", "x-request-id"}


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def _call(
    app: AsgiApplication, path: str = "/complete", body: bytes = b"{}", method: str = "POST", **scope: Any
) -> tuple[int, dict[str, str], bytes]:
    """Send a request and return the status, the header fields and the body of its response."""
    messages: list[dict[str, Any]] = []
    received = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if received:
            return received.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    headers = [(b"host", b"h"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    request = {"type": "http", "method": method, "path": path, "headers": headers, "client": ("127.0.0.1", 5)}
    await app(request | scope, receive, send)
    start, *rest = messages
    fields = {name.decode(): value.decode() for name, value in start["headers"]}
    assert [message["more_body"] for message in rest] == [True] * (len(rest) - 1) + [False]
    return start["status"], fields, b"".join(message["body"] for message in rest)


@asynccontextmanager
async def _application(ctx: Any = None, **settings: Any) -> AsyncIterator[AsgiApplication]:
    async with local_backend(ctx, **settings) as (backend, loaded):
        yield AsgiApplication(backend, loaded)


def _scripted(*attempts: list[bytes | Exception]) -> Backend:
    """Return a backend whose attempts yield these bytes, or raise."""
    left = list(attempts)

    async def backend(request: ForwardedRequest) -> AsyncGenerator[bytes, None]:
        for step in left.pop(0):
            if isinstance(step, Exception):
                raise step
            yield step

    return backend


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("GET", "/health", None),
        ("HEAD", "/health", None),
        ("GET", "/", None),
        ("GET", "/static/page-0/base.css", None),
        ("GET", "/nowhere", None),
        ("DELETE", "/complete", None),
        ("POST", "/complete", b'{"prompt": "x"}'),
        ("POST", "/complete", b'{"prompt": "x", "stream": true}'),
        ("POST", "/complete", b"{"),
        ("POST", "/v1/chat/completions", b"{}"),
        ("POST", "/v1/messages", b"{}"),
        ("POST", "/complete", b"x" * 2000),
    ],
)
async def test_the_same_answers(method: str, path: str, content: bytes | None) -> None:
    """Status, header fields and body are those of the aiohttp service, but for the fields of the server in front."""
    found = []
    for served in (serving, serving_asgi):
        async with served(max_body_bytes=1024) as url, httpx.AsyncClient() as client:
            response = await client.request(
                method, url + path, content=content, headers={"content-type": "application/json"}
            )
            fields = {name: value for name, value in response.headers.items() if name not in OWN}
            found.append((response.status_code, fields, response.content))
    assert found[0] == found[1]


async def test_files() -> None:
    """Files, which a socket gets from the kernel, are written."""
    async with serving_asgi() as url, httpx.AsyncClient(base_url=url) as client:
        page = (await client.get("/")).text
        path = re.findall(r'href="([^"]+[.]css[^"]*)"', page)[0]
        assert len((await client.get(f"/{path}")).content) > 1000


async def test_the_official_client() -> None:
    """Whole and streamed answers, as from the service."""
    async with serving_asgi() as url, AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.chat.completions.create(**ASK)
        assert whole.choices[0].message.content == "Hello there."
        stream = await client.chat.completions.create(**ASK, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello there."


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "status"),
    [
        ("10.0.0.1", None, "", 200),
        ("8.8.8.8", None, "", 403),
        ("8.8.8.8", "10.0.0.1", "", 403),
        ("10.0.0.1", "8.8.8.8", "", 200),
        ("10.0.0.1", "8.8.8.8", "10.0.0.1", 403),
        ("10.0.0.1", "10.0.0.9, 8.8.8.8", "10.0.0.1", 403),
        ("10.0.0.1", "8.8.8.8, 10.0.0.9", "10.0.0.1", 200),
        (None, None, "", 403),
    ],
)
async def test_client_addresses(peer: str | None, forwarded: str | None, trusted: str, status: int) -> None:
    """The peer is the ASGI server's, and forwarding headers count only from trusted ones; an unknown peer is denied."""
    async with _application(trusted_proxies=trusted) as app:
        headers = [(b"host", b"h")] + ([(b"x-forwarded-for", forwarded.encode())] if forwarded else [])
        client = (peer, 5) if peer else None
        assert (await _call(app, "/livez", b"", "GET", client=client, headers=headers))[0] == status


async def test_the_scheme() -> None:
    """HSTS is sent to clients that used TLS."""
    async with _application() as app:
        for scheme, sent in (("http", False), ("https", True)):
            _, headers, _ = await _call(app, "/livez", b"", "GET", scheme=scheme)
            assert ("strict-transport-security" in headers) is sent


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_disconnects(begun: bool) -> None:
    """Its generation ends, before anything is sent and within the stream."""
    engine = FakeEngine(words=("a ",) * 10_000, pause=0.001 if begun else 60)
    async with local_backend(fake_context(engine)) as (backend, settings):
        content = b'{"prompt": "x", "stream": true, "max_new_tokens": 9000}'
        gone, sent = asyncio.Event(), list[dict[str, Any]]()
        body = [{"type": "http.request", "body": content}]

        async def receive() -> dict[str, Any]:
            if body:
                return body.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        length = (b"content-length", b"%d" % len(content))
        headers = [(b"host", b"h"), (b"content-type", b"application/json"), length]
        scope = {"type": "http", "method": "POST", "path": "/complete", "headers": headers, "client": ("::1", 5)}
        asking = asyncio.create_task(AsgiApplication(backend, settings)(scope, receive, send))
        await until(lambda: engine.open_streams and bool(sent) is begun)
        gone.set()
        await asking
        await until(lambda: not engine.open_streams)


async def test_a_client_that_stops_reading_stops_the_generation() -> None:
    """What the client has not taken is not generated ahead without a bound."""
    engine = FakeEngine(words=("a" * 1000,) * 5000)
    async with local_backend(fake_context(engine)) as (backend, _):
        body = b'{"prompt": "x", "stream": true, "max_new_tokens": 5000}'
        data = b"POST /complete HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        request = ForwardedRequest(data % (len(body), body), ("127.0.0.1", 5), False, asgi.Affinity())
        received = backend(request)
        await anext(received)
        for _ in range(200):
            await asyncio.sleep(0)
        stopped = engine.generated
        for _ in range(200):
            await asyncio.sleep(0)
        assert engine.generated == stopped < 1000
        await received.aclose()


@pytest.mark.parametrize(
    "lost",
    [
        [ReplicaLost("died")],
        [b"", ReplicaLost("died")],
        [STREAM, ReplicaLost("died")],
        [STREAM + _chunk(COMMENT), ReplicaLost("died")],
        [STREAM],
    ],
)
async def test_a_replica_that_ends_before_the_first_event(lost: list[bytes | Exception]) -> None:
    """The request is sent to another one, and the client gets one whole answer."""
    answer: list[bytes | Exception] = [STREAM + _chunk(EVENT) + _chunk(EVENT) + b"0\r\n\r\n"]
    app = AsgiApplication(_scripted(lost, lost, answer), Settings.load())
    status, headers, body = await _call(app)
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    assert body.replace(COMMENT, b"") == EVENT + EVENT


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/complete", b'data: {"error":'),
        ("/v1/chat/completions", b'data: {"error":'),
        ("/v1/responses", b'event: error\ndata: {"type":"error","sequence_number":1,'),
        ("/v1/messages", b'event: error\ndata: {"type":"error","error":'),
    ],
)
async def test_a_replica_that_ends_after_the_first_event(path: str, last: bytes) -> None:
    """The request is not sent again; the stream ends with an error in the form of its route."""
    app = AsgiApplication(_scripted([STREAM + _chunk(EVENT), ReplicaLost("died")]), Settings.load())
    status, _, body = await _call(app, path)
    assert status == 200
    assert body.startswith(EVENT + last)
    assert b"the replica that answered this request has ended" in body
    assert body.count(b"data:") == 2


async def test_a_replica_that_ends_within_a_whole_answer() -> None:
    """The connection breaks off: a part of it is never taken for the whole."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"
    app = AsgiApplication(_scripted([head, ReplicaLost("died")]), Settings.load())
    with pytest.raises(ConnectionError, match="within the response"):
        await _call(app)


async def test_no_replica_is_left() -> None:
    """After a few attempts the answer is 503, in the form of the route, with the headers of every answer."""
    app = AsgiApplication(_scripted(*[[ReplicaLost("died")]] * asgi.ATTEMPTS), Settings.load())
    status, headers, body = await _call(app, "/v1/completions")
    assert (status, json.loads(body)["error"]["code"]) == (503, "engine_restarting")
    assert headers["x-content-type-options"] == "nosniff"


async def test_a_second_replica_that_refuses() -> None:
    """If a comment has already sent the status, the refusal is an error event."""
    refused = b"HTTP/1.1 429 Too Many\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
    lost: list[bytes | Exception] = [STREAM + _chunk(COMMENT), ReplicaLost("died")]
    status, _, body = await _call(AsgiApplication(_scripted(lost, [refused]), Settings.load()))
    assert status == 200
    assert body.startswith(COMMENT + b'data: {"error":')


async def test_a_body_that_does_not_arrive() -> None:
    """It is refused after BODY_TIMEOUT_SECONDS without taking a replica."""

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    app = AsgiApplication(_scripted(), Settings.load(body_timeout_seconds=0.1))
    await app({"type": "http", "method": "POST", "path": "/complete", "headers": []}, receive, send)
    assert sent[0]["status"] == 408
