"""A streaming HTTP client with little overhead, because it runs on the cores of the server it measures.

While an answer arrives, its bytes are only split into chunks and timestamped; events are parsed after it has ended.
"""

from __future__ import annotations

import asyncio
import time

from loadtests.load.answer import Streamed, read_streamed
from loadtests.load.http_answer import BadAnswer, HTTPAnswer


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
