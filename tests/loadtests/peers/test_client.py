from __future__ import annotations

import asyncio

import pytest

from loadtests.answers import BadAnswer
from loadtests.peers.client import Client, HTTPAnswer, Streamed, read_streamed
from tests.loadtests.peers.events import ANSWER, BODY, USAGE, chunk, line


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


@pytest.mark.parametrize("cut", [1, 5, 64, 10_000])
def test_events_are_read_however_they_are_cut(cut: int) -> None:
    """Characters of several bytes too; an event's time is when its end came, and tokens are the usage's."""
    pieces = [(float(start), BODY[start : start + cut]) for start in range(0, len(BODY), cut)]
    answer = read_streamed(pieces, -1.0, 9_999.0)
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("It is Pâris", 84, 4)
    ends = [len(b"".join(line(event) for event in ANSWER[:count])) - 2 for count in (2, 3)]
    assert answer.times == tuple(float(end // cut * cut) for end in ends)
    assert answer.first == answer.times[0] + 1.0


def test_peers_may_leave_out_what_says_nothing() -> None:
    """No [DONE], no line end at the end, usage in the last chunk, comments, empty fields."""
    last = line(chunk(finish_reason="length") | {"usage": USAGE}).rstrip()
    body = b": ping\n\n" + line({"choices": [{"delta": None}], "error": None}) + line(chunk("a")) + last
    assert read_streamed([(1.0, body)], 0.0, 2.0) == Streamed(0.0, 2.0, (1.0,), 84, 4, "a")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "finish_reason"),
        (line(chunk("a")) + line({"usage": USAGE}), "finish_reason"),
        (line(chunk("a", finish_reason="stop")), "usage"),
        (line(chunk("a", finish_reason="stop") | {"usage": {"completion_tokens": 0}}), "usage"),
        (line({"error": {"message": "planted"}}), "planted"),
        (line({"error": "planted"}), "planted"),
        (b"data: {\n", "not JSON"),
        (b"data: 1\n", "not a JSON object"),
    ],
)
def test_a_broken_stream_is_refused(body: bytes, message: str) -> None:
    """Errors and answers without an end, tokens or JSON count as failures."""
    with pytest.raises(BadAnswer, match=message):
        read_streamed([(0.0, body)], 0.0, 0.0)


def test_an_answer_that_straddles_an_edge_counts_for_its_part() -> None:
    """Its pieces say when its tokens came; an answer without text came at its end."""
    answer = Streamed(0.0, 5.0, (1.0, 2.0, 3.0, 4.0), 84, 8, "abcd")
    assert [answer.tokens_between(*edges) for edges in ((0, 9), (2, 4), (4.5, 9), (-3, 1))] == [8, 4, 0, 0]
    assert Streamed(0.0, 5.0, (), 84, 2, "").tokens_between(4, 6) == 2


async def test_an_answer_that_does_not_end_is_given_up() -> None:
    """And what still comes of it is no part of the next answer."""

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    client = Client(server.sockets[0].getsockname()[1])
    with pytest.raises(BadAnswer, match="no end"):
        await client.ask("/", b"{}", seconds=0.1)
    assert client._connection is None
    server.close()
    await server.wait_closed()
