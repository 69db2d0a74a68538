"""A streaming HTTP client on blocking sockets with little overhead.

It runs in threads, and under Locust in greenlets, because gevent replaces the sockets of the standard library.
"""

from __future__ import annotations

import socket
import ssl
import time
from urllib.parse import urlsplit

from loadtests.load.http_answer import BadAnswer, HTTPAnswer

_RECEIVE_BYTES = 65_536
_CONNECT_SECONDS = 30.0


class Target:
    """A server's address and what every request to it needs.

    Args:
        url: ``http://HOST:PORT`` or ``https://HOST``, perhaps with a path before all others.
        api_key: sent as a bearer token (RFC 6750 section 2.1); None for none.
        verify: whether a certificate must be valid.

    Raises:
        ValueError: the URL is wrong.
    """

    def __init__(self, url: str, api_key: str | None = None, verify: bool = True) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.query
            or parts.fragment
            or parts.username
        ):
            raise ValueError(f"{url}: not an address such as http://127.0.0.1:8000")
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.prefix = parts.path.rstrip("/")
        self.tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self.tls = ssl.create_default_context() if verify else ssl._create_unverified_context()  # noqa: S323
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.url = f"{parts.scheme}://{host}:{self.port}{self.prefix}"
        authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        if any(character < " " for character in api_key or ""):
            raise ValueError("the API key has control characters")
        self._fields = f"Host: {host}:{self.port}\r\n{authorization}Content-Type: application/json\r\n"

    def connect(self) -> socket.socket:
        """Return a new connection.

        Raises:
            OSError: there is none.
        """
        connection = socket.create_connection((self.host, self.port), timeout=_CONNECT_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.tls.wrap_socket(connection, server_hostname=self.host) if self.tls else connection

    def head(self, method: str, path: str, length: int) -> bytes:
        """Return a request's head."""
        return f"{method} {self.prefix}{path} HTTP/1.1\r\n{self._fields}Content-Length: {length}\r\n\r\n".encode()


class ConnectionPool:
    """Sends requests, each on a connection that is kept if possible; any number of threads may share it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._idle: list[socket.socket] = []

    def request(
        self, method: str, path: str, body: bytes = b"", seconds: float = 600.0, events: int | None = None
    ) -> tuple[HTTPAnswer, float, float]:
        """Send one request and read its response.

        Args:
            method: the HTTP method.
            path: the path.
            body: the body as JSON.
            seconds: the time limit for all of it.
            events: disconnect after so many ``data:`` lines, and return what has come.

        Returns:
            The response, and the times at which the request was sent and the response ended.

        Raises:
            BadAnswer: the response is cut off or not HTTP.
            TimeoutError: it did not come in time.
            OSError: there is no connection.
        """
        began = time.perf_counter()
        sent = self._target.head(method, path, len(body)) + body
        while self._idle:
            connection, answer = self._idle.pop(), HTTPAnswer()
            try:
                return self._exchange(connection, answer, sent, began, seconds, events)
            except TimeoutError:
                raise
            except (OSError, BadAnswer):
                if answer.status:
                    raise
                # Otherwise the server closed the idle connection before the request arrived, and has not seen it.
        return self._exchange(self._target.connect(), HTTPAnswer(), sent, began, seconds, events)

    def _exchange(
        self,
        connection: socket.socket,
        answer: HTTPAnswer,
        sent: bytes,
        began: float,
        seconds: float,
        events: int | None,
    ) -> tuple[HTTPAnswer, float, float]:
        kept, now, seen = False, began, 0
        try:
            connection.settimeout(seconds)
            connection.sendall(sent)
            while not answer.done:
                if (left := began + seconds - now) <= 0:
                    raise TimeoutError(f"no end of the answer after {seconds:g} s")
                if left < seconds - 1:
                    connection.settimeout(left)
                data = connection.recv(_RECEIVE_BYTES)
                now = time.perf_counter()
                if data:
                    answer.feed(data, now)
                else:
                    answer.closed()
                if events is not None and answer.status == 200:
                    seen += data.count(b"data:")
                    if seen >= events:
                        return answer, began, now
            kept = answer.keep_alive
        finally:  # a cut answer's connection is of no more use, also when this greenlet is killed
            if kept:
                self._idle.append(connection)
            else:
                connection.close()
        return answer, began, now

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()
