"""Detects whether a client that sent a FIN still reads (half-closed: ``nc -N``, socat, scripts) or has disconnected.

A client that has closed its connection for good sends the same FIN, and its request must be cancelled at once to free
the engine. TCP gives no way to tell the two apart by listening. But a closed socket answers any byte with RST (RFC 9293
section 3.10.7.1), while a half-closed one accepts it. So the response is begun early: the first bytes of its status
line, which are the same for every response, are sent one by one, with growing pauses, until the response is ready. An
interim response (RFC 9110 section 15.2) would not do: HTTP/1.0 has none, and simple clients take it for the final one.

Once a response has begun, its own bytes have the same effect. asyncio supports no half-close with TLS: there a FIN ends
the connection, as it does when a request is incomplete.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterable
from typing import Any

from middleware.aiohttp_internals import current_request

_FIRST_PAUSE = 0.05  # seconds: most networks return the RST within it
_GROWTH = 3  # so the nine bytes cover over 160 s


class HalfClosed:
    """Probes one half-closed connection until it is lost, and aborts it if the client has disconnected.

    Args:
        protocol: aiohttp's connection, which writes responses to its ``transport``.
        socket_transport: the socket's transport.
    """

    def __init__(self, protocol: Any, socket_transport: asyncio.Transport) -> None:
        self._protocol, self._socket_transport = protocol, socket_transport
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        self._poll.register(
            socket_transport.get_extra_info("socket").fileno(), 0
        )  # POLLERR and POLLHUP are always reported
        self._timer = self._loop.call_soon(self._probe, _FIRST_PAUSE)

    def stop(self) -> None:
        """Stop probing, because the connection is lost."""
        self._timer.cancel()

    def _probe(self, pause: float) -> None:
        if self._poll.poll(0):
            self._socket_transport.abort()  # this also cancels the request's handler
            return
        request = current_request(self._protocol)
        if request is not None and request.writer.output_size == 0:
            self._send_status_byte(b"HTTP/%d.%d " % request.version)
        self._timer = self._loop.call_later(pause, self._probe, pause * _GROWTH)

    def _send_status_byte(self, status_line: bytes) -> None:
        """Send one more byte of the status line, if one is left."""
        wrapper = self._protocol.transport
        if not isinstance(wrapper, _Begun):
            wrapper = self._protocol.transport = _Begun(self._protocol, self._socket_transport)
        if wrapper.sent < len(status_line):
            self._socket_transport.write(status_line[wrapper.sent : wrapper.sent + 1])
            wrapper.sent += 1


class _Begun:
    """Wraps the transport until the response's first write, from which it removes the bytes that are already sent."""

    def __init__(self, protocol: Any, socket_transport: asyncio.Transport) -> None:
        self._protocol, self._socket_transport = protocol, socket_transport
        self.sent = 0

    def write(self, data: bytes) -> None:
        """Write the response's head without the bytes already sent, and restore the original transport."""
        self._protocol.transport = self._socket_transport
        self._socket_transport.write(memoryview(data)[self.sent :])

    def writelines(self, chunks: Iterable[bytes]) -> None:
        """Write the response's head and the first part of its body, as ``write`` does."""
        self.write(b"".join(chunks))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket_transport, name)
