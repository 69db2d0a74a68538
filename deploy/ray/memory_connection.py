"""A connection to an aiohttp server in the same process, without a socket.

The ASGI adapter gives each request a connection of its own. The server sees the address and the scheme that the ASGI
server has seen, so that limits, allowlist, deadlines and logs work as on a socket. Bytes that the reader has not taken
count as unsent: the server then waits, and a client that stops reading meets the write deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast


class MemoryTransport(asyncio.Transport):
    """The server's side of the connection.

    Args:
        loop: the event loop.
        peer: the client's address and port; None if it is unknown, which the server refuses.
        tls: whether the client used TLS.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, peer: tuple[str, int] | None, *, tls: bool) -> None:
        extra: dict[str, Any] = {"peername": peer}
        if tls:
            extra["sslcontext"] = True  # only its presence is looked at
        super().__init__(extra)
        self._loop = loop
        self._protocol: asyncio.Protocol | None = None
        self._buffer = bytearray()
        self._changed = asyncio.Event()
        self._reading = True
        self._closing = self._lost = self._paused = False
        self._high = 65_536

    @property
    def _sendfile_compatible(self) -> Any:
        """Say that there is nothing for ``loop.sendfile`` to send to, whereupon aiohttp writes the file.

        Raises:
            NotImplementedError: always; an attribute that is missing would be a RuntimeError, which aiohttp raises on.
        """
        raise NotImplementedError

    def start(self, protocol: asyncio.Protocol) -> None:
        """Connect the server's protocol."""
        self._protocol = protocol
        protocol.connection_made(self)

    def receive(self, data: bytes) -> None:
        """Pass bytes of the client to the server."""
        if self._protocol is not None and not self._closing:
            self._protocol.data_received(data)

    async def take(self) -> bytes:
        """Return the bytes that the server has sent since, at least one; b"" at the end of the connection."""
        while not self._buffer and not self._closing:
            self._changed.clear()
            await self._changed.wait()
        data = bytes(self._buffer)
        self._buffer.clear()
        if self._paused:
            self._paused = False
            if self._protocol is not None and not self._lost:
                self._protocol.resume_writing()
        return data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the server."""
        if self._closing:
            return
        self._buffer += data
        self._changed.set()
        if not self._paused and len(self._buffer) > self._high and self._protocol is not None:
            self._paused = True
            self._protocol.pause_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set above how many unsent bytes the server waits, until all were taken.

        Args:
            high: the number of bytes; by default 64 KiB.
            low: ignored, since bytes are taken all at once.
        """
        self._high = 65_536 if high is None else high

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that were not taken yet."""
        return len(self._buffer)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the server's protocol."""
        return cast(asyncio.BaseProtocol, self._protocol)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Replace the server's protocol."""
        self._protocol = cast(asyncio.Protocol, protocol)

    def can_write_eof(self) -> bool:
        """Return False: the connection ends as a whole."""
        return False

    def is_reading(self) -> bool:
        """Return whether the server takes bytes; the client has sent all of them by the time that it stops."""
        return self._reading

    def pause_reading(self) -> None:
        """Do nothing but note it: a request's body is complete, and smaller than MAX_BODY_BYTES."""
        self._reading = False

    def resume_reading(self) -> None:
        """Note it."""
        self._reading = True

    def is_closing(self) -> bool:
        """Return whether the connection has ended."""
        return self._closing

    def close(self) -> None:
        """End the connection; bytes that were written can still be taken."""
        if not self._closing:
            self._closing = True
            self._changed.set()
            self._loop.call_soon(self._lose)

    def abort(self) -> None:
        """End the connection and drop the bytes that were not taken."""
        self._buffer.clear()
        self.close()

    def _lose(self) -> None:
        if not self._lost and self._protocol is not None:
            self._lost = True
            self._protocol.connection_lost(None)


async def exchange(
    protocol: asyncio.Protocol, request: bytes, peer: tuple[str, int] | None, *, tls: bool
) -> AsyncIterator[bytes]:
    """Send one request to a server's protocol and yield the bytes of its response.

    Closing the generator disconnects: the server cancels the request's handler, as when a client disconnects.

    Args:
        protocol: a new protocol of the server.
        request: the bytes of the request, ``Connection: close`` among its fields.
        peer: the client's address and port.
        tls: whether the client used TLS.
    """
    transport = MemoryTransport(asyncio.get_running_loop(), peer, tls=tls)
    transport.start(protocol)
    try:
        transport.receive(request)
        while data := await transport.take():
            yield data
    finally:
        transport.abort()
