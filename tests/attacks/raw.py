"""A client that sends exactly the bytes it is given, and reads answers as a strict proxy would."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass, field

PATIENCE = 15.0
"""Seconds after which a silent server is a test's failure."""


@dataclass(frozen=True)
class Answer:
    """One HTTP answer. Field names are in lower case; of repeated fields all values are kept."""

    status: int
    headers: dict[str, list[str]] = field(default_factory=dict)
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The only value of a field, None where there is none."""
        values = self.headers.get(name.lower(), [])
        if len(values) > 1:
            raise ValueError(f"{name} is there {len(values)} times")
        return values[0] if values else None


@dataclass(frozen=True)
class Exchange:
    """All that came back on a connection, and whether the server closed it."""

    answers: list[Answer]
    closed: bool

    @property
    def statuses(self) -> list[int]:
        """Of the answers, in order."""
        return [answer.status for answer in self.answers]

    @property
    def ids(self) -> list[str | None]:
        """The answers' X-Request-Id, which tells whose answer each is."""
        return [answer.header("x-request-id") for answer in self.answers]


class Malformed(ValueError):
    """What the server sent is no sequence of HTTP answers."""


def connect(port: int, source: str = "127.0.0.1", timeout: float = PATIENCE) -> socket.socket:
    """A connection to a port of the loopback, from one of its addresses."""
    return socket.create_connection(("127.0.0.1", port), timeout, (source, 0))


def exchange(port: int, raw: bytes, *, answers: int | None = None, source: str = "127.0.0.1") -> Exchange:
    """Send all bytes on a new connection; read until the server closes it.

    Args:
        port: of the loopback.
        raw: what is sent.
        answers: stop reading after that many.
        source: the client's address.

    Raises:
        TimeoutError: the server neither answered as often nor closed in time.
        Malformed: what came is no HTTP.
    """
    with connect(port, source) as connection:
        received, closed = b"", False
        with suppress(ConnectionError):  # it has seen enough; what it said before may still be read
            connection.sendall(raw)
        while True:
            found = parse(received)
            if answers is not None and len(found) >= answers:
                return Exchange(found, closed)
            try:
                chunk = connection.recv(1 << 20)
            except ConnectionError:
                chunk = b""
            if not chunk:
                return Exchange(parse(received, ended=True), True)
            received += chunk


def parse(data: bytes, *, ended: bool = False) -> list[Answer]:
    """The answers that are complete; with ``ended`` there must be nothing else, and one may end with the connection."""
    answers = []
    while data:
        head, separator, rest = data.partition(b"\r\n\r\n")
        if not separator:
            if ended:
                raise Malformed(f"half a head: {data[:200]!r}")
            break
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = status_line.split(" ", 2)
        if version not in ("HTTP/1.0", "HTTP/1.1"):
            raise Malformed(f"not a status line: {status_line[:200]!r}")
        headers: dict[str, list[str]] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip() or any(c in line for c in "\r\n\0"):
                raise Malformed(f"not a field: {line[:200]!r}")
            headers.setdefault(name.lower(), []).append(value.strip())
        body = _body(int(status), headers, rest, ended)
        if body is None:
            break
        content, data = body
        answers.append(Answer(int(status), headers, content))
    return answers


def _body(status: int, headers: dict[str, list[str]], rest: bytes, ended: bool) -> tuple[bytes, bytes] | None:
    """(the body, what follows it), None while it is incomplete. Answers to HEAD are not understood."""
    if status < 200 or status in (204, 304):
        return b"", rest
    if headers.get("transfer-encoding") == ["chunked"]:
        content = b""
        while True:
            size, separator, after = rest.partition(b"\r\n")
            if not separator:
                return None
            length = int(size, 16)
            if len(after) < length + 2:
                return None
            content, rest = content + after[:length], after[length + 2 :]
            if length == 0:
                return content, rest
    lengths = headers.get("content-length", [])
    if len(lengths) > 1:
        raise Malformed("several Content-Length")
    if not lengths:
        return (rest, b"") if ended else None
    length = int(lengths[0])
    return None if len(rest) < length else (rest[:length], rest[length:])
