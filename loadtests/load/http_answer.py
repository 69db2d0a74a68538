"""Parses HTTP responses that arrive in pieces, and keeps the time of each."""

from __future__ import annotations

Piece = tuple[float, bytes]
"""Arrival time in ``time.perf_counter`` seconds, and bytes of the body."""


class BadAnswer(Exception):
    """The answer is an error, is incomplete, or does not have the operation's shape."""


class HTTPAnswer:
    """Parses one HTTP/1.1 response (RFC 9112) as it arrives: with a length, chunked, or until the close."""

    def __init__(self) -> None:
        self.status = 0
        self.pieces: list[Piece] = []
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
