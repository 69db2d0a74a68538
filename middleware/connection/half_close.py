"""Half-closed connections: the client has sent its request and a FIN, and still reads (``nc -N``, socat, scripts).

A client that has closed its connection for good sends the same FIN, and must free the engine at once; TCP lets nobody
tell the two apart by listening. But a socket that is closed answers any byte with RST (RFC 9293 section 3.10.7.1),
while one that is half-closed takes it. So the answer is begun early: the first bytes of its status line, which are the
same for every answer, are sent one by one, with growing pauses, until the answer is there. They need no interim
response (RFC 9110 section 15.2), which HTTP/1.0 does not know and simple clients take for the answer.

Once an answer has begun, what it is made of does the same. TLS has no half-close that asyncio supports: there the
connection ends, as it does for a request that is not complete.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterable
from typing import Any

_FIRST_PAUSE = 0.05  # seconds: most networks return the RST within it
_GROWTH = 3  # nine bytes then reach over 160 s


class HalfClosed:
    """Watches one half-closed connection until it is lost.

    Args:
        protocol: aiohttp's connection; ``transport`` is where its answers are written.
        wire: the socket's transport.
    """

    def __init__(self, protocol: Any, wire: asyncio.Transport) -> None:
        self._protocol, self._wire = protocol, wire
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        self._poll.register(wire.get_extra_info("socket").fileno(), 0)  # POLLERR and POLLHUP are always reported
        self._timer = self._loop.call_soon(self._probe, _FIRST_PAUSE)

    def stop(self) -> None:
        """The connection is lost."""
        self._timer.cancel()

    def _probe(self, pause: float) -> None:
        if self._poll.poll(0):
            self._wire.abort()  # which cancels the request's handler
            return
        request = self._protocol._current_request
        if request is not None and request.writer.output_size == 0:
            self._begin(b"HTTP/%d.%d " % request.version)
        self._timer = self._loop.call_later(pause, self._probe, pause * _GROWTH)

    def _begin(self, status_line: bytes) -> None:
        """Send one more byte of the answer's beginning, if one is left."""
        begun = self._protocol.transport
        if not isinstance(begun, _Begun):
            begun = self._protocol.transport = _Begun(self._protocol, self._wire)
        if begun.sent < len(status_line):
            self._wire.write(status_line[begun.sent : begun.sent + 1])
            begun.sent += 1


class _Begun:
    """Stands for the transport until the answer's first bytes are written, and leaves out those that are sent."""

    def __init__(self, protocol: Any, wire: asyncio.Transport) -> None:
        self._protocol, self._wire = protocol, wire
        self.sent = 0

    def write(self, data: bytes) -> None:
        """Write the answer's head; see ``asyncio.WriteTransport``."""
        self._protocol.transport = self._wire
        self._wire.write(memoryview(data)[self.sent :])

    def writelines(self, chunks: Iterable[bytes]) -> None:
        """Write the answer's head and more; see ``asyncio.WriteTransport``."""
        self.write(b"".join(chunks))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wire, name)
