"""Converts an ASGI request to the bytes of an HTTP/1.1 request, and the bytes of a response to ASGI messages.

The application reads HTTP/1.1 (RFC 9112), whatever connection it has; so every request keeps its header fields, its
target and the framing of its body as the client sent them, and all checks of the connection apply to it.

Source of the messages: ASGI 3.0, HTTP and WebSocket message format 2.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import h11

Headers = Iterable[tuple[bytes, bytes]]

# Fields of a connection and not of a message (RFC 9110 section 7.6.1), and those that the ASGI server answers itself.
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"te", b"expect"})
_STREAMS = (b"text/event-stream", b"application/x-ndjson")
_NOT_SENT_ON = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date", b"server"})


class MalformedResponse(ConnectionError):
    """The bytes are not an HTTP/1.1 response."""


def request_bytes(scope: Mapping[str, Any], body: bytes) -> bytes:
    """Return the bytes of a request.

    Args:
        scope: the ASGI scope of type ``http``. Its ``root_path``, the route prefix, is removed from the path.
        body: the body without framing, or as much of it as has arrived: less than Content-Length says is sent as it is.

    Returns:
        The request with ``Connection: close``, its body chunked if the client's was.
    """
    target: bytes = scope.get("raw_path") or scope["path"].encode()
    target = target.partition(b"?")[0]
    prefix = scope.get("root_path", "").rstrip("/").encode()
    if prefix and target.startswith(prefix):
        target = target[len(prefix) :]
    if scope.get("query_string"):
        target += b"?" + scope["query_string"]
    lines = [b"%s %s HTTP/1.1" % (scope["method"].encode(), target or b"/")]
    chunked = False
    for name, value in scope["headers"]:
        lowered = name.lower()
        if lowered in _HOP_BY_HOP:
            continue
        chunked |= lowered == b"transfer-encoding"
        lines.append(name + b": " + value)
    lines.append(b"Connection: close\r\n\r\n")
    if chunked:
        body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    return b"\r\n".join(lines) + body


@dataclass(frozen=True, slots=True)
class Head:
    """The status and the header fields of a response, without those of the connection."""

    status: int
    headers: list[tuple[bytes, bytes]]

    @property
    def is_stream(self) -> bool:
        """Whether the body is a stream of server-sent events, or of lines of JSON."""
        return any(name == b"content-type" and value.startswith(_STREAMS) for name, value in self.headers)

    def message(self) -> dict[str, Any]:
        """Return the ASGI message that begins the response."""
        return {"type": "http.response.start", "status": self.status, "headers": self.headers}


class ResponseReader:
    """Reads one response from its bytes, as they come.

    Args:
        method: the request's method; a response to HEAD has no body (RFC 9112 section 6.3).

    Attributes:
        head: the status and header fields, once they are complete.
        complete: whether the whole response was read.
    """

    def __init__(self, method: str) -> None:
        self.head: Head | None = None
        self.complete = False
        self._connection = h11.Connection(h11.CLIENT)
        self._connection.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        self._connection.send(h11.EndOfMessage())

    def feed(self, data: bytes) -> bytes:
        """Take received bytes and return those of the body that are among them, without framing.

        Raises:
            MalformedResponse: the bytes are not a response, or there are more of them than it has.
        """
        return self._read(data) if data else b""

    def end(self) -> None:
        """Take the end of the connection.

        Raises:
            MalformedResponse: the response is not complete.
        """
        if not self.complete:
            self._read(b"")
        if not self.complete:
            raise MalformedResponse("the connection ended within the response")

    def _read(self, data: bytes) -> bytes:
        """Take bytes; none are the end of the connection."""
        parts = []
        try:
            self._connection.receive_data(data)
            while not self.complete and (event := self._connection.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    fields = [(name, value) for name, value in event.headers if name not in _NOT_SENT_ON]
                    self.head = Head(event.status_code, fields)
                elif isinstance(event, h11.Data):
                    parts.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self.complete = True
        except h11.RemoteProtocolError as error:
            raise MalformedResponse(str(error)) from None
        if self.complete and self._connection.trailing_data[0]:
            raise MalformedResponse("bytes behind the response")
        return b"".join(parts)
