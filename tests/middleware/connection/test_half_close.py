"""middleware.connection.half_close over real sockets: half-closed clients get answers, clients that are gone free the
engine.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from app import create_app
from middleware.connection.runner import DeadlineRunner
from runtime.settings import Settings
from tests.support.fakes import FakeEngine, fake_context, until
from tests.support.wire import PATIENCE, statuses

PAUSE = 0.3  # seconds that the engine takes before its first token: the FIN is there before the answer begins


class Client:
    """Raw connections to a service on a fake engine."""

    def __init__(self, path: Path | None = None, **engine: Any) -> None:
        self.engine = FakeEngine(**engine)
        app = create_app(Settings.load(), fake_context(self.engine))
        self._runner = DeadlineRunner.of(app, Settings.load(trust_unix_peers=True), handler_cancellation=True)
        self._path = path

    async def __aenter__(self) -> Client:
        await self._runner.setup()
        if self._path is None:
            await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        else:
            await web.UnixSite(self._runner, str(self._path)).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def send(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which bytes were sent and, behind them, a FIN."""
        if self._path is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._runner.addresses[0][1])
        else:
            reader, writer = await asyncio.open_unix_connection(str(self._path))
        writer.write(data)
        writer.write_eof()
        return reader, writer

    async def exchange(self, data: bytes) -> bytes:
        """All that is answered until the server closes the connection."""
        async with asyncio.timeout(PATIENCE):
            reader, writer = await self.send(data)
            answer = await reader.read()
            writer.close()
            return answer


def ask(version: str = "1.1", *, stream: bool = False, path: str = "/complete", tokens: int = 3) -> bytes:
    """A request for a completion."""
    body = json.dumps({"prompt": "x", "max_new_tokens": tokens, "stream": stream}).encode()
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_half_closed_client_gets_its_answer(version: str, stream: bool) -> None:
    """Whole and unchanged, though its first bytes are sent early; it says that the connection ends."""
    async with Client(words=("a", "b", "c"), pause=PAUSE) as client:
        answer = await client.exchange(ask(version, stream=stream))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/{version} 200 OK\r\n".encode())
        assert head.count(b"HTTP/") == 1
        assert b"\r\nConnection: close\r\n" in head + b"\r\n"
        assert (b"data: [DONE]" in body) if stream else json.loads(body)["usage"]["completion_tokens"] == 3


async def test_a_stream_that_is_half_closed_in_the_middle_goes_on() -> None:
    """A FIN behind the first tokens changes nothing of the rest."""
    async with Client(words=("a",) * 5, pause=0.1) as client, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", client._runner.addresses[0][1])
        writer.write(ask(stream=True, tokens=5))
        begin = await reader.readuntil(b"data: ")
        writer.write_eof()
        answer = begin + await reader.read()  # ends, because the connection is closed behind the answer
        assert statuses(answer) == [200]
        assert answer.count(b"data: ") == 7  # five tokens, the usage, the end
        writer.close()


async def test_pipelined_requests_before_a_half_close_are_all_answered() -> None:
    """In order; the connection ends behind the last."""
    async with Client(words=("a",), pause=0.1) as client:
        answer = await client.exchange(ask(tokens=1) + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" + ask(tokens=1))
        assert answer.count(b"HTTP/1.1 200 OK\r\n") == 3
        assert answer.count(b"Connection: close") == 1


async def test_what_is_no_request_is_answered_before_a_half_close() -> None:
    """A client that sends nonsense and a FIN learns why it is refused."""
    async with Client() as client:
        assert statuses(await client.exchange(b"GARBAGE\r\n\r\n")) == [400]


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\nHo", ask()[:-1]])
async def test_an_incomplete_request_is_not_waited_for(data: bytes) -> None:
    """What the FIN cuts off will never come: the connection is closed."""
    async with Client() as client:
        assert await client.exchange(data) == b""


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("later", [False, True])
async def test_a_client_that_is_gone_frees_the_engine(version: str, stream: bool, later: bool) -> None:
    """A socket that is closed frees the engine before its first token, at once or after it was half-closed."""
    async with Client(words=("a",), pause=3600) as client, asyncio.timeout(PATIENCE):
        _, writer = await client.send(ask(version, stream=stream))
        if later:
            await until(lambda: client.engine.open_streams == 1)
            await asyncio.sleep(0.2)
            assert client.engine.open_streams == 1
        writer.close()
        await until(lambda: client.engine.open_streams == 0)


async def test_a_client_that_is_gone_in_a_stream_frees_the_engine() -> None:
    """So does one that had shut its sending side, and leaves while it reads."""
    async with Client(words=("a",) * 100_000, pause=0.01) as client, asyncio.timeout(PATIENCE):
        reader, writer = await client.send(ask(stream=True, tokens=100_000))
        await reader.readuntil(b"data: ")
        writer.close()
        await until(lambda: client.engine.open_streams == 0)


async def test_unix_sockets(tmp_path: Path) -> None:
    """The same holds for a socket file."""
    async with Client(tmp_path / "socket", words=("a",) * 3, pause=PAUSE) as client:
        assert statuses(await client.exchange(ask())) == [200]
        client.engine.pause = 3600
        _, writer = await client.send(ask())
        await until(lambda: client.engine.open_streams == 1)
        writer.close()
        await until(lambda: client.engine.open_streams == 0)
