"""Converts an ASGI request to the bytes of an HTTP/1.1 request, and the bytes of a response to ASGI messages.

The application reads HTTP/1.1 (RFC 9112), whatever connection it has; so every request keeps its header fields, its
target and the framing of its body as the client sent them, and all checks of the connection apply to it.

Source of the messages: ASGI 3.0, HTTP and WebSocket message format 2.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Headers = Iterable[tuple[bytes, bytes]]

# Fields of a connection and not of a message (RFC 9110 section 7.6.1), and those that the ASGI server answers itself.
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"te", b"expect"})
_NOT_SENT_ON = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date", b"server"})
_BODILESS = frozenset({204, 304})


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
    def is_event_stream(self) -> bool:
        """Whether the body is a stream of server-sent events."""
        return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in self.headers)

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
        self._bodiless = method == "HEAD"
        self._data = b""
        self._left: int | None = None  # bytes of the body, or of the chunk, that are still to come
        self._chunked = False
        self._in_trailer = False

    def feed(self, data: bytes) -> bytes:
        """Take received bytes and return those of the body that are among them, without framing.

        Raises:
            MalformedResponse: the bytes are not a response, or there are more of them than it has.
        """
        self._data += data
        if self.head is None and not self._read_head():
            return b""
        if self.complete:
            if self._data:
                raise MalformedResponse("bytes behind the response")
            return b""
        return self._read_chunks() if self._chunked else self._read_body()

    def end(self) -> None:
        """Take the end of the connection.

        Raises:
            MalformedResponse: the response is not complete.
        """
        if self.head is not None and self._left is None and not self._chunked:
            self.complete = True  # its body ends with the connection
        if not self.complete:
            raise MalformedResponse("the connection ended within the response")

    def _read_head(self) -> bool:
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            return False
        first, *lines = head.split(b"\r\n")
        version, _, after = first.partition(b" ")
        code = after[:3]
        if not version.startswith(b"HTTP/1.") or not code.isdigit():
            raise MalformedResponse("no status line")
        fields = []
        for line in lines:
            name, _, value = line.partition(b":")
            name, value = name.lower(), value.strip(b" \t")
            self._chunked |= name == b"transfer-encoding" and value.lower() == b"chunked"
            if name == b"content-length":
                self._left = int(value)
            if name not in _NOT_SENT_ON:
                fields.append((name, value))
        self.head = Head(int(code), fields)
        self._data = rest
        if self._bodiless or self.head.status in _BODILESS:
            self._chunked, self._left = False, 0
        elif self._chunked:
            self._left = None
        self.complete = self._left == 0
        return True

    def _read_body(self) -> bytes:
        body, self._data = self._data, b""
        if self._left is not None:
            if len(body) > self._left:
                raise MalformedResponse("a body longer than its Content-Length")
            self._left -= len(body)
            self.complete = self._left == 0
        return body

    def _read_chunks(self) -> bytes:
        found = []
        while not self.complete:
            if self._left is None:
                line, end, rest = self._data.partition(b"\r\n")
                if not end:
                    break
                if self._in_trailer:
                    self.complete = not line
                else:
                    self._left = self._size(line)
                    self._in_trailer = self._left == 0
                    if self._in_trailer:
                        self._left = None
                self._data = rest
            else:
                if len(self._data) < self._left + 2:  # chunks are small: they are taken whole, with their line break
                    break
                found.append(self._data[: self._left])
                self._data = self._data[self._left + 2 :]
                self._left = None
        return b"".join(found)

    @staticmethod
    def _size(line: bytes) -> int:
        try:
            return int(line.partition(b";")[0], 16)
        except ValueError:
            raise MalformedResponse("no chunk size") from None
