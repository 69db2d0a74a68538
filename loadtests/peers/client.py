"""A streaming HTTP client with little overhead, because it runs on the cores of the server it measures.

While an answer arrives, its bytes are only split into chunks and timestamped; events are parsed after it has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from loadtests.answers import BadAnswer, json_object

_Piece = tuple[float, bytes]


class Streamed(NamedTuple):
    """One complete streamed answer. Times are ``time.perf_counter`` seconds."""

    began: float
    """The time at which the request was sent."""
    ended: float
    times: tuple[float, ...]
    """The time at which each piece of text arrived, in order; a piece may hold several tokens."""
    prompt_tokens: int
    completion_tokens: int
    text: str

    @property
    def first(self) -> float | None:
        """Seconds from the request to the first text; None if there was none."""
        return self.times[0] - self.began if self.times else None

    def tokens_between(self, start: float, end: float) -> float:
        """Return its tokens that arrived in ``[start, end)``, assuming that all pieces of text hold equally many."""
        times = self.times or (self.ended,)
        return self.completion_tokens * sum(start <= moment < end for moment in times) / len(times)


class HTTPAnswer:
    """Parses one HTTP/1.1 response (RFC 9112) as it arrives: with a length, chunked, or until the close."""

    def __init__(self) -> None:
        self.status = 0
        self.pieces: list[_Piece] = []
        self.done = False
        self.keep_alive = True
        self._rest = b""
        self._chunked = False
        self._left: int | None = None  # missing bytes of the body; None: it ends with the connection

    def feed(self, data: bytes, now: float) -> None:
        """Parse the bytes that have arrived.

        Args:
            data: the bytes.
            now: their arrival in ``time.perf_counter`` seconds.

        Raises:
            BadAnswer: it is not HTTP.
        """
        self._rest += data
        if not self.status and not self._head():
            return
        if self._chunked:
            self._chunks(now)
        elif self._rest:
            self.pieces.append((now, self._rest))
            if self._left is not None:
                self._left -= len(self._rest)
            self._rest = b""
        self.done = self.done or self._left == 0

    def closed(self) -> None:
        """Note that the connection has closed.

        Raises:
            BadAnswer: the response is not complete.
        """
        if not self.done and (self._chunked or self._left is not None or not self.status):
            raise BadAnswer("the connection closed in the middle of an answer")
        self.done, self.keep_alive = True, False

    def body(self) -> bytes:
        """Return the body that has arrived so far."""
        return b"".join(data for _, data in self.pieces)

    def _head(self) -> bool:
        head, found, rest = self._rest.partition(b"\r\n\r\n")
        if not found:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        try:
            self.status = int(first.split(" ", 2)[1])
        except (IndexError, ValueError):
            raise BadAnswer(f"no HTTP: {first[:200]!r}") from None
        fields = {name.strip().lower(): value.strip().lower() for name, _, value in (x.partition(":") for x in lines)}
        self._chunked = "chunked" in fields.get("transfer-encoding", "")
        self._left = int(fields["content-length"]) if "content-length" in fields and not self._chunked else None
        self.keep_alive = fields.get("connection", "") != "close"
        self._rest = rest
        return True

    def _chunks(self, now: float) -> None:
        while not self.done:
            line, found, rest = self._rest.partition(b"\r\n")
            if not found:
                return
            try:
                size = int(line.split(b";")[0], 16)
            except ValueError:
                raise BadAnswer(f"no chunk size: {line[:80]!r}") from None
            if size == 0:
                self.done = rest.startswith(b"\r\n") or b"\r\n\r\n" in rest  # trailers are ignored
                return
            if len(rest) < size + 2:
                return
            self.pieces.append((now, rest[:size]))
            self._rest = rest[size + 2 :]


def read_streamed(pieces: Iterable[_Piece], began: float, ended: float) -> Streamed:
    """Parse the events of a streamed chat answer.

    It accepts more than ``loadtests.answers``: other servers leave out ``[DONE]`` and empty fields.

    Args:
        pieces: (arrival time, bytes), split anywhere.
        began: the time at which the request was sent.
        ended: the time at which the answer's end arrived.

    Raises:
        BadAnswer: an event is an error or not JSON; finish reason, usage or tokens are missing.
    """
    texts: list[str] = []
    times: list[float] = []
    usage = reason = None
    for now, event in _events(pieces):
        if event.get("error"):
            raise BadAnswer(f"error event: {event['error']}")
        for choice in event.get("choices") or ():
            reason = choice.get("finish_reason") or reason
            if text := (choice.get("delta") or {}).get("content"):
                texts.append(text)
                times.append(now)
        usage = event.get("usage") or usage
    if reason is None:
        raise BadAnswer("the stream has no finish_reason")
    if not usage or usage.get("completion_tokens", 0) < 1:
        raise BadAnswer(f"no usage: {usage!r}")
    read, written = int(usage.get("prompt_tokens", 0)), int(usage["completion_tokens"])
    return Streamed(began, ended, tuple(times), read, written, "".join(texts))


def _events(pieces: Iterable[_Piece]) -> Iterator[tuple[float, dict[str, Any]]]:
    rest, now = b"", 0.0
    for now, data in pieces:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if (event := _event(line)) is not None:
                yield now, event
    if (event := _event(rest)) is not None:
        yield now, event


def _event(line: bytes) -> dict[str, Any] | None:
    data = line[5:].strip() if line.startswith(b"data:") else b""
    if not data or data == b"[DONE]":
        return None
    return json_object(data)


class _Connection(asyncio.Protocol):
    """An asyncio protocol that carries one request and response at a time."""

    def __init__(self) -> None:
        self.response = HTTPAnswer()
        self.ended: asyncio.Future[float] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        try:
            self.response.feed(data, now)
        except BadAnswer as error:
            self._end(error)
        if self.response.done:
            self._end(now)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        try:
            self.response.closed()
            self._end(time.perf_counter())
        except BadAnswer as error:
            self._end(exc or error)

    def _end(self, outcome: float | Exception) -> None:
        if self.ended is None or self.ended.done():
            return
        if isinstance(outcome, Exception):
            self.ended.set_exception(outcome)
        else:
            self.ended.set_result(outcome)


class Client:
    """An HTTP client of a server on the loopback, with one connection that it keeps alive if possible."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: _Connection | None = None

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[HTTPAnswer, float, float]:
        """Send one request and wait for its response.

        Returns:
            The complete response, and the times at which the request was sent and the response ended.

        Raises:
            BadAnswer: the response is cut off or not HTTP.
            OSError: there is no connection.
        """
        kept = self._connection
        if kept is not None and kept.transport is not None and not kept.transport.is_closing():
            try:
                return await self._exchange(kept, method, path, body)
            except (OSError, BadAnswer):
                if kept.response.status:
                    raise
                # Otherwise the server closed the idle connection before the request arrived, and has not seen it.
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", self._port)
        self._connection = connection
        return await self._exchange(connection, method, path, body)

    async def _exchange(
        self, connection: _Connection, method: str, path: str, body: bytes
    ) -> tuple[HTTPAnswer, float, float]:
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Length: {len(body)}\r\n"
        connection.response, connection.ended = HTTPAnswer(), asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        if connection.transport is None:
            raise ConnectionError("the connection closed before the request")
        connection.transport.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        try:
            ended = await connection.ended
        except BaseException:  # cancellation too: later data on this connection belongs to no request
            self.close()
            raise
        if not connection.response.keep_alive:
            self.close()
        return connection.response, began, ended

    async def ask(self, path: str, body: bytes, seconds: float = 600) -> Streamed:
        """Send a chat request and read its streamed answer to the end.

        Args:
            path: the operation's path.
            body: the request as JSON.
            seconds: the time limit for the whole answer.

        Raises:
            BadAnswer: status, stream or events are wrong, or the time is up.
            OSError: there is no connection.
        """
        try:
            async with asyncio.timeout(seconds):
                response, began, ended = await self.request("POST", path, body)
        except TimeoutError:
            raise BadAnswer(f"no end of the answer after {seconds:g} s") from None
        if response.status != 200:
            raise BadAnswer(f"{response.status}: {response.body()[:500]!r}")
        return read_streamed(response.pieces, began, ended)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.close()
        self._connection = None
