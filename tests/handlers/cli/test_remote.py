"""Speaking to a running service over HTTP."""

from __future__ import annotations

import asyncio
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from handlers.cli.remote import Remote, default_url
from runtime.errors import ServiceError
from tests.support.fakes import FakeEngine, fake_context, serving


async def off_loop(call: Callable[[], Any]) -> Any:
    """The service runs on this loop, the client must not."""
    return await asyncio.to_thread(call)


async def test_calls_and_streams() -> None:
    """JSON in, JSON out; events one by one, without the last word."""
    async with serving(fake_context()) as url:
        remote = Remote(url + "/")
        assert (await off_loop(lambda: remote.call("GET", "/models")))["data"][0]["id"] == "fake"
        payload = {"prompt": "x", "stream": True}
        events = await off_loop(lambda: list(remote.events("POST", "/complete", payload)))
        assert "".join(event.get("text") or "" for event in events) == "Hello there."


async def test_errors_are_the_services_own_words() -> None:
    """As problem details, as OpenAI's error object, and in the middle of a stream."""
    async with serving(fake_context(FakeEngine(fail_after=1))) as url:
        remote = Remote(url)
        for method, path, payload, said in (
            ("POST", "/complete", {"prompt": []}, "prompt"),
            ("POST", "/v1/chat/completions", {"messages": []}, "messages"),
            ("POST", "/models/x/load", {}, "no model 'x' here"),
        ):
            with pytest.raises(ServiceError, match=said):
                await off_loop(lambda method=method, path=path, payload=payload: remote.call(method, path, payload))
        with pytest.raises(ServiceError, match="planted"):
            await off_loop(lambda: list(remote.events("POST", "/complete", {"prompt": "x", "stream": True})))
        with pytest.raises(ServiceError, match="served: fake"):
            await off_loop(lambda: list(remote.events("POST", "/models/x/load", {"stream": True})))


@contextmanager
def answering(status: int, body: bytes, content_type: str = "application/json") -> Iterator[tuple[str, list[Any]]]:
    """A server that says one thing to everyone: its URL, and the headers that it got."""
    seen: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, dict(self.headers)))
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()


def test_the_key_and_the_path_behind_a_proxy() -> None:
    """The key is a bearer token; a path in the URL comes before the route's."""
    with answering(200, b"{}") as (url, seen):
        Remote(url + "/llm/", "s3cret").call("GET", "/models")
        Remote(url).call("GET", "/models")
    assert [path for path, _ in seen] == ["/llm/models", "/models"]
    assert [headers.get("Authorization") for _, headers in seen] == ["Bearer s3cret", None]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>", "status 200 and a body that is not a JSON object"),
        (502, b"<html>", "status 502"),
        (200, b"[]", "a body that is not a JSON object"),
    ],
)
def test_what_is_no_service_is_told(status: int, body: bytes, said: str) -> None:
    """A page instead of JSON is not an answer."""
    with answering(status, body) as (url, _), pytest.raises(ConnectionError, match=said):
        Remote(url).call("GET", "/models")


def test_an_error_without_words() -> None:
    """Its status is told."""
    with answering(418, b"{}") as (url, _), pytest.raises(ServiceError, match="418"):
        Remote(url).call("GET", "/models")


def test_a_stream_that_breaks_off() -> None:
    """Is no whole answer, though its events came."""
    with answering(200, b': a comment\n\ndata: {"a": 1}\n\n', "text/event-stream") as (url, _):
        events = Remote(url).events("GET", "/", {})
        assert next(events) == {"a": 1}
        with pytest.raises(ConnectionError, match="ended its response"):
            next(events)


def test_nobody_answers(tmp_path: Path) -> None:
    """The address is named; so is one that is none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    for url in (f"http://127.0.0.1:{free}", f"unix:{tmp_path}/none"):
        with pytest.raises(ConnectionError, match=f"no service answers at {url}"):
            Remote(url).call("GET", "/models")
    for url in ("ftp://x", "127.0.0.1:8000", "http://x:port"):
        with pytest.raises(ConnectionError, match="is not http://HOST:PORT"):
            Remote(url).call("GET", "/models")


def test_a_socket_file(tmp_path: Path) -> None:
    """HTTP over a unix socket."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1000)
                client.sendall(b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{"ok": true}')

        threading.Thread(target=answer, daemon=True).start()
        assert Remote(f"unix:{path}").call("GET", "/") == {"ok": True}


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("fd00::1", "http://[fd00::1]:8000"),
        ("unix:/run/w.sock", "unix:/run/w.sock"),
    ],
)
def test_where_a_service_is_found(host: str, url: str) -> None:
    """Who listens everywhere is found on this machine."""
    assert default_url(host, 8000) == url
