"""deploy.ray.wire: requests as bytes, and responses from bytes."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.ray.wire import MalformedResponse, ResponseReader, request_bytes

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def scope(**changed: Any) -> dict[str, Any]:
    return {"method": "POST", "path": "/complete", "query_string": b"", "headers": [(b"host", b"h")]} | changed


def test_a_request_keeps_its_fields() -> None:
    """Target, header fields and body are the client's; those of its connection are not sent on."""
    headers = [(b"host", b"h"), (b"Connection", b"keep-alive"), (b"expect", b"100-continue"), (b"x-a", b"\xe9")]
    sent = request_bytes(scope(headers=headers, raw_path=b"/a%2Fb", query_string=b"c=d"), b"body")
    assert sent == b"POST /a%2Fb?c=d HTTP/1.1\r\nhost: h\r\nx-a: \xe9\r\nConnection: close\r\n\r\nbody"


def test_a_chunked_body_stays_chunked() -> None:
    """A body without a length is framed again, and an empty one ends at once."""
    headers = [(b"host", b"h"), (b"transfer-encoding", b"chunked")]
    assert request_bytes(scope(headers=headers), b"ab").endswith(b"\r\n\r\n2\r\nab\r\n0\r\n\r\n")
    assert request_bytes(scope(headers=headers), b"").endswith(b"close\r\n\r\n0\r\n\r\n")


def test_the_route_prefix_is_removed() -> None:
    """An application below a prefix sees the paths that it has without one."""
    assert request_bytes(scope(path="/b/complete", root_path="/b"), b"").startswith(b"POST /complete HTTP/1.1\r\n")
    assert request_bytes(scope(path="/b", root_path="/b"), b"").startswith(b"POST / HTTP/1.1\r\n")


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_chunked_response(size: int) -> None:
    """The body comes without its framing, in whatever pieces the bytes come."""
    reader, body = ResponseReader("GET"), b""
    data = CHUNKED + b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
    for start in range(0, len(data), size):
        assert not reader.complete
        body += reader.feed(data[start : start + size])
    assert (body, reader.complete) == (b"abc0123456789", True)
    assert reader.head is not None
    assert reader.head.is_stream
    assert reader.head.headers == [(b"content-type", b"text/event-stream")]


def test_a_response_of_known_length() -> None:
    """It is complete with its last byte."""
    reader = ResponseReader("GET")
    assert reader.feed(b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nDate: x\r\n\r\na") == b"a"
    assert not reader.complete
    assert reader.feed(b"bc") == b"bc"
    assert reader.complete
    assert reader.head is not None
    assert reader.head.message() == {
        "type": "http.response.start",
        "status": 404,
        "headers": [(b"content-length", b"3")],
    }


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_a_response_without_a_body(method: str, status: int) -> None:
    """It is complete with its head, whatever length the head names."""
    reader = ResponseReader(method)
    reader.feed(b"HTTP/1.1 %d X\r\nContent-Length: 3\r\n\r\n" % status)
    assert reader.complete


def test_a_response_that_ends_with_the_connection() -> None:
    """Without a length the end of the connection is that of the body."""
    reader = ResponseReader("GET")
    assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\nabc") == b"abc"
    reader.end()
    assert reader.complete


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
        CHUNKED + b"3\r\nab",
        CHUNKED + b"3\r\nabc\r\n",
        b"hello there\r\n\r\n",
        CHUNKED + b"xyz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
    ],
)
def test_a_response_that_is_none(data: bytes) -> None:
    """A response that is cut off or malformed is never taken for a whole one."""
    reader = ResponseReader("GET")
    with pytest.raises(MalformedResponse):  # noqa: PT012 - either call may find it
        reader.feed(data)
        reader.end()
