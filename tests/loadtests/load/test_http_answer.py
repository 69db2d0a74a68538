from __future__ import annotations

import pytest

from loadtests.load.http_answer import BadAnswer, HTTPAnswer
from tests.loadtests.load.events import BODY


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%X;x=y\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 100, 10_000])
def test_a_chunked_response_is_the_same_however_it_is_cut(cut: int) -> None:
    """Heads, sizes and chunks may be split anywhere on their way; the end is known from the last chunk."""
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n" + chunked(BODY, 50)
    response = HTTPAnswer()
    for start in range(0, len(wire), cut):
        assert not response.done
        response.feed(wire[start : start + cut], float(start))
    assert (response.done, response.status, response.keep_alive) == (True, 200, True)
    assert response.body() == BODY


def test_a_response_with_a_length_ends_with_its_last_byte() -> None:
    """And says so at once if it has no byte."""
    response = HTTPAnswer()
    response.feed(b"HTTP/1.1 503 No\r\ncontent-length: 3\r\nConnection: close\r\n\r\nab", 0.0)
    assert not response.done
    response.feed(b"c", 1.0)
    assert (response.done, response.status, response.keep_alive) == (True, 503, False)
    assert response.pieces == [(0.0, b"ab"), (1.0, b"c")]
    empty = HTTPAnswer()
    empty.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0.0)
    assert empty.done


def test_a_response_without_a_length_ends_with_its_connection() -> None:
    """As HTTP/1.0 has it; the connection is not used again."""
    response = HTTPAnswer()
    response.feed(b"HTTP/1.0 200 OK\r\n\r\nabc", 0.0)
    assert not response.done
    response.closed()
    assert (response.done, response.keep_alive, response.body()) == (True, False, b"abc")


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
    ],
)
def test_a_cut_response_is_refused(wire: bytes) -> None:
    """A server that dies in an answer has not answered."""
    response = HTTPAnswer()
    response.feed(wire, 0.0)
    with pytest.raises(BadAnswer, match="closed"):
        response.closed()


@pytest.mark.parametrize("wire", [b"220 mail\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"])
def test_what_is_no_http_is_refused(wire: bytes) -> None:
    """Neither another protocol's greeting nor a broken chunk is waited on."""
    with pytest.raises(BadAnswer):
        HTTPAnswer().feed(wire, 0.0)
