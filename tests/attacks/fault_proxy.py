"""A TCP proxy with faults: it delays, cuts, garbles, stalls, half-closes and refuses what it passes on.

Faults are set for each direction and can be changed while connections are open::

    async with FaultProxy("127.0.0.1", 6379) as proxy:
        proxy.down.stall_after = 0  # from now on nothing comes back
        ...
        proxy.heal()
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_CHUNK = 65_536
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() sends RST


@dataclass
class Faults:
    """What happens to one direction. Bytes are counted for each connection; None is never.

    Args:
        delay: seconds that each piece is held back.
        piece: most bytes passed on at once; 1 drips.
        garble: makes other bytes of each piece; of a piece it makes empty, nothing is passed on.
        stall_after: bytes, after which nothing more is passed on while the connection stays open.
        half_close_after: bytes, after which the receiver is told that no more will come; the other direction goes on.
        cut_after: bytes, after which both sides' connections are reset.
    """

    delay: float = 0
    piece: int = _CHUNK
    garble: Callable[[bytes], bytes] | None = None
    stall_after: int | None = None
    half_close_after: int | None = None
    cut_after: int | None = None

    def allows(self, passed: int) -> int:
        """How many bytes may pass before the next fault."""
        limits = (self.stall_after, self.half_close_after, self.cut_after)
        return min(self.piece, *(max(0, limit - passed) for limit in limits if limit is not None), _CHUNK)


class FaultProxy:
    """See the module.

    Args:
        host: where connections are passed on to.
        port: of that host.

    ``up`` is from the client to the server, ``down`` is back. With ``refuse`` connections are reset at once.
    ``connections`` counts those accepted, ``open`` holds those open.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host, self._target = host, port
        self.up, self.down = Faults(), Faults()
        self.refuse = False
        self.connections = 0
        self.open: set[asyncio.Task[None]] = set()
        self.port = 0
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self.open, return_exceptions=True)

    def heal(self) -> None:
        """No more faults; what is stalled flows on."""
        self.up, self.down, self.refuse = Faults(), Faults(), False
        self._changed.set()
        self._changed = asyncio.Event()

    def cut(self) -> None:
        """Reset all connections."""
        for task in self.open:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.open.add(task)
        writers = [writer]
        try:
            if not self.refuse:
                far_reader, far_writer = await asyncio.open_connection(self.host, self._target)
                writers.append(far_writer)
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(reader, far_writer, up=True))
                    both.create_task(self._pump(far_reader, writer, up=False))
                for each in writers:
                    each.close()
                return
        except* (OSError, _Cut):
            pass
        except* asyncio.CancelledError:
            pass  # the end of the proxy or of the connection; nobody waits for this task's result
        finally:
            self.open.discard(task)
            for each in writers:
                _reset(each)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        """Pass on until the sender has ended, then tell the receiver so."""
        passed, waiting = 0, b""
        while True:
            faults = self.up if up else self.down
            changed = self._changed
            if faults.cut_after is not None and passed >= faults.cut_after:
                raise _Cut
            if faults.half_close_after is not None and passed >= faults.half_close_after:
                break
            if faults.stall_after is not None and passed >= faults.stall_after:
                await changed.wait()
                continue
            if not waiting and not (waiting := await reader.read(_CHUNK)):
                break
            faults = self.up if up else self.down  # they may have changed while nothing came
            size = faults.allows(passed)
            if size == 0:
                continue
            piece, waiting = waiting[:size], waiting[size:]
            await asyncio.sleep(faults.delay)
            writer.write(faults.garble(piece) if faults.garble else piece)
            await writer.drain()
            passed += len(piece)
        if writer.can_write_eof():
            writer.write_eof()


class _Cut(Exception):
    """The connection is to be reset."""


def _reset(writer: asyncio.StreamWriter) -> None:
    if writer.is_closing():
        return
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
