"""runtime.signatures.nonces: used once, in memory and in a real Redis, whatever clocks and networks do."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from runtime.errors import NoncesUnavailable
from runtime.signatures import SignatureError
from runtime.signatures.nonces import MemoryNonces, Nonces, RedisNonces
from runtime.storage.redis import SharedRedis
from tests.support.cancelling import cancel_at_random
from tests.support.clock import Clock
from tests.support.redis_server import REDIS_URL, own_names
from tests.support.signed import NOW

WINDOW = 300


@pytest.fixture
def prefix() -> Iterator[str]:
    """A prefix of one test's own in a real Redis."""
    with own_names("{}:") as name:
        yield name


@pytest.fixture(params=["memory", "redis"])
async def nonces(request: pytest.FixtureRequest, patient_redis: None) -> AsyncIterator[Nonces]:
    """Each of both, at ``NOW``."""
    if request.param == "memory":
        yield MemoryNonces(clock=Clock(NOW))
        return
    shared = SharedRedis(REDIS_URL)
    yield RedisNonces(shared, WINDOW, request.getfixturevalue("prefix"), Clock(NOW))
    await shared.close()


async def _used(nonces: Nonces, nonce: str, *, key_id: str = "k", created: int = NOW, until: int = NOW + 60) -> bool:
    """Whether it was turned down."""
    try:
        await nonces.use(key_id, nonce, created, until)
    except SignatureError:
        return True
    return False


async def test_once(nonces: Nonces) -> None:
    """The first use is one, no other is, whatever time it names; each key has its own."""
    assert not await _used(nonces, "a")
    assert await _used(nonces, "a")
    assert await _used(nonces, "a", until=NOW + 120)
    assert not await _used(nonces, "b")
    assert not await _used(nonces, "a", key_id="other")
    assert not await _used(nonces, "a", key_id="k2")


async def test_one_of_many_at_once(nonces: Nonces) -> None:
    """Of twenty uses at the same time, one is the first."""
    turned_down = await asyncio.gather(*(_used(nonces, "a") for _ in range(20)))
    assert turned_down.count(False) == 1


async def test_memory_forgets_what_has_expired() -> None:
    """A nonce is held as long as its signature is good, then its room is given back."""
    clock = Clock(NOW)
    nonces = MemoryNonces(clock=clock)
    await nonces.use("k", "long", NOW, NOW + 100)
    await nonces.use("k", "short", NOW, NOW + 10)
    clock.now = NOW + 99.9
    assert await _used(nonces, "long", until=NOW + 100)
    clock.now = NOW + 100
    await nonces.use("k", "new", NOW, NOW + 200)
    assert len(nonces) == 1


async def test_memory_is_bounded() -> None:
    """When it is full nobody gets in, and nothing is forgotten; when something has expired there is room again."""
    clock = Clock(NOW)
    nonces = MemoryNonces(max_nonces=2, clock=clock)
    await nonces.use("k", "a", NOW, NOW + 10)
    await nonces.use("k", "b", NOW, NOW + 20)
    with pytest.raises(NoncesUnavailable) as caught:
        await nonces.use("k", "c", NOW, NOW + 20)
    assert caught.value.retry_after == 1
    assert await _used(nonces, "a", until=NOW + 10)
    clock.now = NOW + 10
    assert not await _used(nonces, "c", until=NOW + 20)


async def test_memory_and_a_clock_set_back() -> None:
    """A clock that goes back brings no signature to life whose nonce is forgotten; later ones are let in."""
    clock = Clock(NOW)
    nonces = MemoryNonces(clock=clock)
    await nonces.use("k", "a", NOW, NOW + 10)
    clock.now = NOW + 10
    await nonces.use("k", "b", NOW, NOW + 60)
    clock.now = NOW + 1
    assert await _used(nonces, "a", until=NOW + 10)
    assert await _used(nonces, "never seen", until=NOW + 10)
    assert await _used(nonces, "b", until=NOW + 60)
    assert not await _used(nonces, "c", until=NOW + 11)


async def test_memory_and_a_restart() -> None:
    """What was signed before the process started may have been used in the one before."""
    nonces = MemoryNonces(clock=Clock(NOW + 0.9))
    assert await _used(nonces, "a", created=NOW - 1)
    assert not await _used(nonces, "a", created=NOW)


async def test_replicas_share_redis(prefix: str) -> None:
    """What one replica has seen the other turns down, each with its own connection."""
    one, other = SharedRedis(REDIS_URL), SharedRedis(REDIS_URL)
    first, second = (RedisNonces(shared, WINDOW, prefix, Clock(NOW)) for shared in (one, other))
    assert not await _used(first, "a")
    assert await _used(second, "a")
    assert not await _used(second, "b")
    assert await _used(first, "b")
    await one.close()
    await other.close()


async def test_redis_remembers_a_window_longer(prefix: str) -> None:
    """So that replicas may have clocks that differ, and clocks be set back; no nonce stays for ever."""
    shared = SharedRedis(REDIS_URL)
    await RedisNonces(shared, WINDOW, prefix, Clock(NOW)).use("k", "a", NOW, NOW + 60)
    server = redis.Redis.from_url(REDIS_URL)
    (name,) = server.scan_iter(prefix + "*")
    assert 355_000 < server.pttl(name) <= 360_000
    assert len(name) == len(prefix) + 32
    server.close()
    await shared.close()


async def test_redis_asked_twice_for_one_use(prefix: str) -> None:
    """A call that Redis has run, and whose answer was lost, is run again by the client, and is no replay."""
    shared = SharedRedis(REDIS_URL)
    run = shared.run

    async def twice(script: str, keys: list[str], values: list[str | int]) -> object:
        await run(script, keys, values)
        return await run(script, keys, values)

    shared.run = twice  # type: ignore[assignment, method-assign]
    nonces = RedisNonces(shared, WINDOW, prefix, Clock(NOW))
    assert not await _used(nonces, "a")
    assert await _used(nonces, "a")
    await shared.close()


async def test_cancelled_at_random_moments(prefix: str) -> None:
    """Each check ends, and what was used by then is known."""
    shared, numbers = SharedRedis(REDIS_URL), itertools.count()
    nonces = RedisNonces(shared, WINDOW, prefix, Clock(NOW))
    assert await cancel_at_random(lambda: nonces.use("k", str(next(numbers)), NOW, NOW + 60), 0.01) == 0
    assert await _used(nonces, "new") != await _used(nonces, "new")
    await shared.close()


async def test_redis_that_is_not_there() -> None:
    """Nobody gets in, at once and with a hint when to try again."""
    shared = SharedRedis("redis://127.0.0.1:1/0")
    with pytest.raises(NoncesUnavailable) as caught:
        await RedisNonces(shared, WINDOW, clock=Clock(NOW)).use("k", "a", NOW, NOW + 60)
    assert caught.value.retry_after == 1
    assert "127.0.0.1" not in caught.value.message
    await shared.close()


async def test_redis_that_is_silent() -> None:
    """A server that takes connections and never answers does not hold a request."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        shared = SharedRedis(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        async with asyncio.timeout(30):
            with pytest.raises(NoncesUnavailable):
                await RedisNonces(shared, WINDOW, clock=Clock(NOW)).use("k", "a", NOW, NOW + 60)
        await shared.close()


async def test_redis_comes_back(prefix: str) -> None:
    """What was used before an outage is still turned down after it; during it, nobody gets in."""
    gate = await _Gate.open()
    url = f"{REDIS_URL.partition('//')[0]}//127.0.0.1:{gate.port}/0"
    now = Clock(0)
    shared = SharedRedis(url, clock=now)
    nonces = RedisNonces(shared, WINDOW, prefix, Clock(NOW))
    assert not await _used(nonces, "a")
    await gate.cut()
    with pytest.raises(NoncesUnavailable):
        await nonces.use("k", "a", NOW, NOW + 60)
    await gate.mend()
    now.now += 60  # it is left alone for a moment after a failure
    assert await _used(nonces, "a")
    assert not await _used(nonces, "b")
    await shared.close()
    await gate.cut()


class _Gate:
    """A way to Redis that can be cut."""

    port: int

    @classmethod
    async def open(cls) -> _Gate:
        gate = cls()
        with socket.create_server(("127.0.0.1", 0)) as free:
            gate.port = free.getsockname()[1]
        await gate.mend()
        return gate

    async def mend(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._server = await asyncio.start_server(self._through, "127.0.0.1", self.port)

    async def cut(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _through(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = REDIS_URL.partition("//")[2].partition("/")[0].rpartition(":")
        there, to = await asyncio.open_connection(host, int(port))
        self._writers += [writer, to]
        for source, target in ((reader, to), (there, writer)):
            task = asyncio.ensure_future(_copy(source, target))
            self._tasks.add(task)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65_536):
            target.write(data)
    except ConnectionError:
        pass
    finally:
        target.close()
