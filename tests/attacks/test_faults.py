"""A bad line between client and service: nothing hangs, nothing leaks, nothing is taken for what it is not."""

from __future__ import annotations

import asyncio
import random

import aiohttp
import pytest

from loadtests.service import Service
from tests.attacks.conftest import Start
from tests.attacks.fault_proxy import FaultProxy
from tests.attacks.raw import PATIENCE, exchange, parse
from tests.support.fakes import FakeEngine, fake_context, serving, until

STREAM = {"prompt": "x", "stream": True, "max_new_tokens": 1000}
GET = b"GET /models HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def service(start: Start) -> Service:
    """Deadlines that a test can wait for."""
    return start(HEADER_TIMEOUT_SECONDS="1", BODY_TIMEOUT_SECONDS="1", KEEPALIVE_SECONDS="2")


@pytest.mark.parametrize("cut_after", [1, 150, 400, 2000])
async def test_a_stream_cut_on_its_way_frees_the_engine(cut_after: int) -> None:
    """Wherever in the answer the line breaks, its engine slot and its lease are free soon."""
    engine = FakeEngine(words=("word",) * 1000, pause=0.005)
    ctx = fake_context(engine)
    async with serving(ctx) as url, FaultProxy("127.0.0.1", int(url.rpartition(":")[2])) as proxy:
        proxy.down.cut_after = cut_after
        async with aiohttp.ClientSession(f"http://127.0.0.1:{proxy.port}") as session:
            with pytest.raises(aiohttp.ClientError):
                async with session.post("/generate", json=STREAM) as response:
                    await response.read()
        await until(lambda: engine.jobs and not engine.open_streams, PATIENCE)
        assert ctx.models.leases == 0  # type: ignore[attr-defined]


async def test_a_silent_line_does_not_hold_up_others() -> None:
    """One client's answer stands still on its way; another is answered, and the first too when it flows again."""
    engine = FakeEngine(words=("word",) * 50, pause=0.001)
    async with serving(fake_context(engine)) as url, FaultProxy("127.0.0.1", int(url.rpartition(":")[2])) as proxy:
        proxy.down.stall_after = 100
        async with aiohttp.ClientSession() as session:
            stalled = asyncio.create_task(session.post(f"http://127.0.0.1:{proxy.port}/generate", json=STREAM))
            await until(lambda: engine.jobs)
            async with session.post(f"{url}/generate", json=STREAM) as response:
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
            assert not stalled.done()
            proxy.heal()
            async with await stalled as response:
                assert (await response.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("gone", [False, True])
async def test_a_half_closed_client_behind_a_proxy(gone: bool) -> None:
    """A proxy passes on that its client sends no more: the client is answered if it waits, the engine freed if not."""
    engine = FakeEngine(words=("word",) * 200, pause=3600 if gone else 0.002)
    body = b'{"prompt": "x", "max_new_tokens": 200}'
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    async with serving(fake_context(engine)) as url, FaultProxy("127.0.0.1", int(url.rpartition(":")[2])) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(head + body)
        await until(lambda: engine.open_streams)
        if gone:
            writer.close()
            await until(lambda: not engine.open_streams, PATIENCE)
            return
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        assert [answer.status for answer in parse(answer, ended=True)] == [200]
        writer.close()


@pytest.mark.parametrize("end", [1, 10, 40, len(GET) - 1])
async def test_half_a_request_is_none(service: Service, end: int) -> None:
    """A request that breaks off is not answered as one, and its connection is closed."""
    async with FaultProxy("127.0.0.1", service.port) as proxy:
        proxy.up.half_close_after = end
        answered = await asyncio.to_thread(exchange, proxy.port, GET)
    assert answered.closed
    assert 200 not in answered.statuses


async def test_dripping_lines_are_slow_but_good(service: Service) -> None:
    """Byte by byte in both directions the answer is the same."""
    async with FaultProxy("127.0.0.1", service.port) as proxy:
        proxy.up.piece = proxy.down.piece = 1
        answered = await asyncio.to_thread(exchange, proxy.port, GET)
    assert answered.statuses == [200]


async def test_garbled_requests_are_refused_or_mean_what_they_say(service: Service) -> None:
    """One random byte wrong in each of 300 requests: an HTTP answer below 500 or a closed connection, and it lives."""
    chance = random.Random(5)
    body = b'{"prompt": 1, "n": 2}'
    post = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    request = post + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def garble(piece: bytes) -> bytes:
        place = chance.randrange(len(piece))
        return piece[:place] + bytes([chance.randrange(256)]) + piece[place + 1 :]

    async with FaultProxy("127.0.0.1", service.port) as proxy:
        proxy.up.garble = garble
        seen = set()
        for _ in range(15):
            exchanges = await asyncio.gather(
                *(asyncio.to_thread(exchange, proxy.port, request, answers=1) for _ in range(20))
            )
            seen |= {status for each in exchanges for status in each.statuses}
        assert proxy.connections == 300
    assert {400, 415} <= seen
    assert max(seen) < 500
    assert min(seen) >= 400
    assert exchange(service.port, GET).statuses == [200]


def test_parse_needs_whole_answers() -> None:
    """The client that judges all this takes nothing for an answer that is none, and half of one for none."""
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    assert [answer.body for answer in parse(whole + whole)] == [b"ok", b"ok"]
    assert parse(whole[:-1]) == []
    with pytest.raises(ValueError, match="not a field"):
        parse(b"HTTP/1.1 200 OK\r\nbroken\r\n\r\n")
