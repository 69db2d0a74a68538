from __future__ import annotations

import asyncio

import pytest

from loadtests.load.http_answer import BadAnswer
from loadtests.peers.client import Client


async def test_an_answer_that_does_not_end_is_given_up() -> None:
    """And what still comes of it is no part of the next answer."""

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    client = Client(server.sockets[0].getsockname()[1])
    with pytest.raises(BadAnswer, match="no end"):
        await client.ask("/", b"{}", seconds=0.1)
    assert client._connection is None
    server.close()
    await server.wait_closed()
