"""The fault proxy itself: what it is told to do is what happens, or the tests that use it show nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.attacks.fault_proxy import FaultProxy
from tests.support.fakes import until

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_PATIENCE = 5


@asynccontextmanager
async def _echo() -> AsyncIterator[FaultProxy]:
    """A proxy before a server that says everything again, and ``bye`` when its client has ended."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(1000):
                writer.write(piece)
            writer.write(b"bye")
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()


async def _connect(proxy: FaultProxy) -> Connection:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def _say(connection: Connection, text: bytes) -> bytes:
    reader, writer = connection
    writer.write(text)
    return await asyncio.wait_for(reader.readexactly(len(text)), _PATIENCE)


async def test_without_faults_all_passes() -> None:
    """Bytes and ends pass in both directions, and the connection is gone afterwards."""
    async with _echo() as proxy:
        reader, writer = await _connect(proxy)
        assert await _say((reader, writer), b"x" * 200_000) == b"x" * 200_000
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), _PATIENCE) == b"bye"
        writer.close()
        await until(lambda: not proxy.open)
        assert proxy.connections == 1


async def test_refuse() -> None:
    """A refused connection is reset."""
    async with _echo() as proxy:
        proxy.refuse = True
        with pytest.raises(ConnectionError):
            await _say(await _connect(proxy), b"hello")


async def test_cut() -> None:
    """After so many bytes both sides are reset."""
    async with _echo() as proxy:
        proxy.down.cut_after = 3
        reader, writer = await _connect(proxy)
        writer.write(b"hello")
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(reader.readexactly(5), _PATIENCE)
        await until(lambda: not proxy.open)


async def test_stall_and_heal() -> None:
    """After so many bytes nothing passes and nothing is closed; healed, all the rest passes, on the same connection."""
    async with _echo() as proxy:
        proxy.down.stall_after = 3
        reader, writer = await _connect(proxy)
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(3), _PATIENCE) == b"hel"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        proxy.heal()
        assert await asyncio.wait_for(reader.readexactly(2), _PATIENCE) == b"lo"


async def test_garble_and_pieces() -> None:
    """Bytes are changed on their way, in one direction; a piece of one byte drips."""
    pieces: list[bytes] = []

    def garble(piece: bytes) -> bytes:
        pieces.append(piece)
        return piece.upper()

    async with _echo() as proxy:
        proxy.up.garble, proxy.up.piece = garble, 1
        assert await _say(await _connect(proxy), b"hello") == b"HELLO"
        assert pieces == [b"h", b"e", b"l", b"l", b"o"]


async def test_half_close() -> None:
    """The server is told that its client has ended, while its answer still comes."""
    async with _echo() as proxy:
        proxy.up.half_close_after = 2
        reader, writer = await _connect(proxy)
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.read(), _PATIENCE) == b"hebye"


async def test_delay() -> None:
    """Delayed bytes come no sooner than the delay, and whole."""
    async with _echo() as proxy:
        slow = await _connect(proxy)
        await _say(slow, b"a")
        proxy.up.delay, begin = 0.2, time.monotonic()
        assert await _say(slow, b"late") == b"late"
        assert time.monotonic() - begin >= 0.2
