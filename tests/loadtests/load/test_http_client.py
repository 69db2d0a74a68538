from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import pytest

from loadtests.load.http_answer import BadAnswer
from loadtests.load.http_client import ConnectionPool, Target

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def raw_server(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that sends these bytes, one per connection, reads on until its client closes, and keeps what it read."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        read: list[bytes] = []

        def run() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(30)
                    read.append(connection.recv(65_536))
                    connection.sendall(answer)
                    if not answer.endswith(b"close"):
                        while more := connection.recv(65_536):
                            read.append(more)
                            connection.sendall(answer)

        thread = Thread(target=run, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", read
        thread.join(30)


def test_a_connection_is_kept() -> None:
    """The second request goes over the first one's; the head has the path below the URL's, and the key."""
    with raw_server(OK) as (url, read):
        pool = ConnectionPool(Target(f"{url}/below/", api_key="secret"))
        for _ in range(2):
            answer, began, ended = pool.request("POST", "/v1/x", b"{}")
            assert (answer.status, answer.body()) == (200, b"ok")
            assert began < ended
        pool.close()
    assert len(read) == 2
    assert read[0].startswith(b"POST /below/v1/x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nAuthorization: Bearer secret\r\n" in read[0]
    assert read[0].endswith(b"Content-Length: 2\r\n\r\n{}")


def test_a_kept_connection_that_was_closed_is_opened_again() -> None:
    """The server may close an idle one at any time; the request is sent once more."""
    with raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclose", OK) as (url, read):
        pool = ConnectionPool(Target(url))
        pool.request("GET", "/")
        assert pool.request("GET", "/")[0].status == 200
        pool.close()
    assert len(read) == 2


def test_a_client_that_hangs_up_closes_its_connection() -> None:
    """After so many events, with what has come."""
    stream = b"HTTP/1.1 200 OK\r\n\r\n" + b"data: 1\n\n" * 3
    with raw_server(stream) as (url, _):
        pool = ConnectionPool(Target(url))
        answer, _, _ = pool.request("POST", "/", b"{}", events=3)
        assert not answer.done
        assert answer.body().count(b"data:") == 3
        assert pool._idle == []


@pytest.mark.parametrize(
    ("sent", "error"),
    [(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nclose", BadAnswer), (b"HTTP/1.1 200 OK\r\n\r\n", TimeoutError)],
)
def test_an_answer_that_does_not_end_is_an_error(sent: bytes, error: type[Exception]) -> None:
    """Cut off, or too slow; its connection is not used again."""
    with raw_server(sent) as (url, _):
        pool = ConnectionPool(Target(url))
        with pytest.raises(error):
            pool.request("GET", "/", seconds=0.2)
        assert pool._idle == []


def test_no_server_is_an_error() -> None:
    """As the system says it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionError):
        ConnectionPool(Target(f"127.0.0.1:{port}")).request("GET", "/")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:9/", "http://localhost:9"),
        ("https://example.org/v/", "https://example.org:443/v"),
        ("http://[::1]:8", "http://[::1]:8"),
    ],
)
def test_addresses_are_read(url: str, expected: str) -> None:
    """With the scheme's port."""
    assert Target(url).url == expected


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x/?q=1", "http://x:port", "http://me:secret@x"])
def test_what_is_no_address_is_refused(url: str) -> None:
    """It is named."""
    with pytest.raises(ValueError, match=r"x|http|port"):
        Target(url)
