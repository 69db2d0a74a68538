"""runtime.storage.redis: a call ends in time or fails, and failures are not paid for by everybody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import redis as client

from runtime.errors import SettingsError
from runtime.storage.redis import RedisUnavailable, SharedRedis
from tests.support.cancelling import cancel_at_random
from tests.support.clock import Clock
from tests.support.redis_server import REDIS_URL, own_names, real_redis

ECHO = "return ARGV[1]"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def shared(clock: Clock) -> AsyncIterator[SharedRedis]:
    with real_redis():
        pass
    made = SharedRedis(REDIS_URL, clock)
    yield made
    await made.close()


async def test_scripts_run(shared: SharedRedis) -> None:
    """Also one that Redis has forgotten, and over one connection if the calls come one after the other."""
    assert await shared.run(ECHO, [], ["a"]) == b"a"
    mine = await shared._client.client_id()
    with client.Redis.from_url(REDIS_URL) as server:
        server.script_flush()
    assert await shared.run(ECHO, [], ["b"]) == b"b"
    assert await shared._client.client_id() == mine


async def test_an_idle_connection_that_redis_closed(shared: SharedRedis) -> None:
    """Is made anew, and nobody notices."""
    mine = await shared._client.client_id()
    with client.Redis.from_url(REDIS_URL) as server:
        server.client_kill_filter(_id=str(mine))
    assert await shared.run(ECHO, [], ["b"]) == b"b"
    assert await shared._client.client_id() != mine


async def test_a_cancelled_call_leaves_nothing_behind(shared: SharedRedis) -> None:
    """Its answer is not taken for that of the next call, wherever it was cut off."""
    for turns in range(12):
        task = asyncio.create_task(shared.run(ECHO, [], ["cancelled"]))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await shared.run(ECHO, [], [f"next {turns}"]) == f"next {turns}".encode()


async def test_calls_cancelled_at_random_moments(shared: SharedRedis) -> None:
    """Each ends, none has an effect afterwards, and no connection is left over."""
    with client.Redis.from_url(REDIS_URL) as server, own_names() as name:
        before = len(server.client_list())
        assert await cancel_at_random(lambda: shared.run("return redis.call('INCR', KEYS[1])", [name]), 0.01) == 0
        count = server.get(name)
        assert await shared.run(ECHO, [], ["next"]) == b"next"
        assert server.get(name) == count
        assert len(server.client_list()) <= before + 8


async def test_a_script_that_fails(shared: SharedRedis, clock: Clock) -> None:
    """Is a failure like any other, and the next call after the pause works."""
    with pytest.raises(RedisUnavailable, match="planted"):
        await shared.run("return redis.error_reply('planted')", [])
    clock.now += 1
    assert await shared.run(ECHO, [], ["a"]) == b"a"


async def test_a_crowd(shared: SharedRedis) -> None:
    """Many calls at once wait for a few connections, and none of them fails."""
    answers = await asyncio.gather(*(shared.run(ECHO, [], [str(number)]) for number in range(500)))
    assert answers == [str(number).encode() for number in range(500)]
    pool = shared._client.connection_pool
    assert len(pool._available_connections) <= 8
    assert not pool._in_use_connections


async def test_a_busy_loop_is_not_redis_fault(shared: SharedRedis) -> None:
    """Where the event loop itself is held up for longer than a call may take, calls work all the same."""

    async def hold_up() -> None:
        for _ in range(4):
            time.sleep(0.6)  # noqa: ASYNC251 - that is the fault to be caused
            await asyncio.sleep(0)

    busy = asyncio.create_task(hold_up())
    assert await asyncio.gather(*(shared.run(ECHO, [], ["a"]) for _ in range(3))) == [b"a"] * 3
    await busy


@pytest.mark.parametrize("drips", [False, True])
async def test_silence(drips: bool, clock: Clock) -> None:
    """A server that says nothing, or drips for ever, is left alone after a moment; and again once the pause is over."""
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while drips:
                writer.write(b"+")
                await asyncio.sleep(0.05)
            await reader.read()
        except ConnectionError:
            pass
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        shared = SharedRedis(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", clock)
        async with asyncio.timeout(5):
            crowd = await asyncio.gather(*(shared.run(ECHO, [], ["a"]) for _ in range(100)), return_exceptions=True)
            assert {type(error) for error in crowd} == {
                RedisUnavailable
            }  # a hundred of them in turns would be too late
            tried = connections
            for _ in range(100):
                with pytest.raises(RedisUnavailable, match="less than a second ago"):
                    await shared.run(ECHO, [], ["a"])
            assert connections == tried
            clock.now += 1
            with pytest.raises(RedisUnavailable):
                await shared.run(ECHO, [], ["a"])
            assert connections > tried
        await shared.close()


@pytest.mark.parametrize("answer", [b":x\r\n", b"$x\r\n", b"*x\r\n", b"%1\r\n*0\r\n:1\r\n", b"?\r\n", b"-ERR no\r\n"])
async def test_nonsense(answer: bytes, clock: Clock) -> None:
    """A server that is no Redis fails like one that is away."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        shared = SharedRedis(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", clock)
        with pytest.raises(RedisUnavailable):
            await shared.run(ECHO, [], ["a"])
        await shared.close()


def test_wrong_url() -> None:
    """What is no URL stops the service at start, with the setting's name and without what it holds."""
    with pytest.raises(SettingsError, match="REDIS_URL") as caught:
        SharedRedis("hunter2@localhost:6379")
    assert "hunter2" not in str(caught.value)
