"""runtime.response_cache.cache and runtime.response_cache.single_flight: answers that are kept, and answers that are
shared.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import redis

from runtime.encoder_types import EncoderOutput
from runtime.errors import CacheUnavailable, TooManyRequests
from runtime.response_cache.cache import MAX_LOGPROBS, PAUSE_SECONDS, ResponseCache
from runtime.response_cache.memory import MemoryStore
from runtime.response_cache.redis import RedisStore
from runtime.response_cache.store import Size, Store, StoreFailed
from runtime.types import Token
from tests.support.cancelling import cancel_at_random
from tests.support.fakes import until
from tests.support.redis_server import REDIS_URL, OwnRedis, own_names

KEY = "0f" * 32
TOKENS = [Token(0, 7, "a", cached_tokens=2), Token(0, 8, "b"), Token(0, 9, "", "stop")]


@dataclass
class Clock:
    """A clock that stands still, wall and monotonic at once."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Computer:
    """What an engine is to the cache: counts its starts, may be held up before each token, may fail."""

    step: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Exception | None = None
    fail_at: int = 0
    started: int = 0
    running: int = 0
    leases: int = 0
    tokens: list[Token] = field(default_factory=lambda: TOKENS)

    def __post_init__(self) -> None:
        self.step.set()

    @asynccontextmanager
    async def start(self) -> AsyncGenerator[tuple[int, AsyncGenerator[Token, None]], None]:
        self.started += 1
        if self.failure is not None and self.fail_at < 0:
            raise self.failure
        async with aclosing(self._tokens()) as tokens:
            yield 5, tokens

    async def _tokens(self) -> AsyncGenerator[Token, None]:
        self.running += 1
        try:
            for place, token in enumerate(self.tokens):
                if self.failure is not None and place == self.fail_at:
                    raise self.failure
                if place:
                    await self.step.wait()
                yield token
        finally:
            self.running -= 1

    @asynccontextmanager
    async def lease(self) -> AsyncGenerator[None, None]:
        self.leases += 1
        try:
            yield
        finally:
            self.leases -= 1


class Failing(MemoryStore):
    """A store that can be made to fail, to be slow, or to hold something else."""

    name = "failing"
    blocking = True
    failing = False
    calls = 0
    delay: Callable[[], object] = staticmethod(lambda: None)

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        self._call()
        return super().get_many(keys)

    def put_many(self, model: str, values: Mapping[str, bytes]) -> None:
        self._call()
        super().put_many(model, values)

    def remove(self, *, model: str | None = None, prefix: str = "") -> int:
        self._call()
        return super().remove(model=model, prefix=prefix)

    def size(self) -> Size:
        self._call()
        return super().size()

    def _call(self) -> None:
        self.calls += 1
        self.delay()
        if self.failing:
            raise StoreFailed("planted")


def _cache(clock: Clock, store: Store | None = None) -> ResponseCache:
    return ResponseCache(
        store or MemoryStore(1_000_000, 100, clock),
        limit_bytes=1_000_000,
        ttl_seconds=100,
        per_caller=True,
        clock=clock,
        monotonic=clock,
    )


async def _ask(
    cache: ResponseCache,
    computer: Computer,
    key: str = KEY,
    *,
    reuse: bool = True,
    max_age: float = float("inf"),
    model: str = "m",
    most: int = 100,
    background: bool = False,
) -> tuple[str, float | None, int, list[Token]]:
    """Status, age, prompt tokens, and up to so many tokens."""
    tokens: list[Token] = []
    async with AsyncExitStack() as held:
        await held.enter_async_context(computer.lease())
        async with cache.answer(
            key, model, held, computer.start, reuse=reuse, max_age=max_age, background=background
        ) as (
            use,
            prompt,
            stream,
        ):
            assert use.key == key
            if most:
                async for token in stream:
                    tokens.append(token)
                    if len(tokens) == most:
                        break
    return use.status, use.age_seconds, prompt, tokens


async def test_computed_once() -> None:
    """The first answer is computed and kept; the second is the same, token for token, and nothing is started."""
    clock, computer = Clock(), Computer()
    cache = _cache(clock)
    assert await _ask(cache, computer) == ("miss", None, 5, TOKENS)
    clock.now += 7
    assert await _ask(cache, computer) == ("hit", 7, 5, TOKENS)
    assert (computer.started, computer.running, computer.leases) == (1, 0, 0)
    stats = await cache.stats()
    assert (stats.hits, stats.misses, stats.shared, stats.bypassed, stats.entries) == (1, 1, 0, 0, 1)
    assert stats.saved_tokens == 3
    assert stats.saved_seconds >= 0
    assert (stats.store, stats.limit_bytes, stats.ttl_seconds) == ("memory", 1_000_000, 100)


async def test_old_answers() -> None:
    """What is older than the caller takes is computed anew and kept in its place; its own time ends it too."""
    clock, computer = Clock(), Computer()
    cache = _cache(clock)
    await _ask(cache, computer)
    clock.now += 60
    assert (await _ask(cache, computer, max_age=60))[0] == "hit"
    assert (await _ask(cache, computer, max_age=59.5))[0] == "miss"
    assert (await _ask(cache, computer, max_age=0))[:2] == ("hit", 0)
    clock.now += 100
    assert (await _ask(cache, computer))[0] == "miss"
    assert (await cache.stats()).expired == 1


@pytest.mark.parametrize(("alternatives", "status"), [(MAX_LOGPROBS - 3, "hit"), (MAX_LOGPROBS - 2, "miss")])
async def test_answers_that_are_too_large(alternatives: int, status: str) -> None:
    """What could not be packed and unpacked in a moment is not kept, and is answered all the same."""
    top = tuple((number, -1.0) for number in range(alternatives))
    computer = Computer(tokens=[replace(TOKENS[0], logprob=-1.0, top_logprobs=top), *TOKENS[1:]])
    cache = _cache(Clock())
    first = await _ask(cache, computer)
    assert len(first[3]) == 3
    again = await _ask(cache, computer)
    assert (again[0], again[3]) == (status, first[3])


async def test_anew() -> None:
    """Who will have none that is there gets one computed, which replaces it; no running one is joined either."""
    clock, computer = Clock(), Computer()
    cache = _cache(clock)
    await _ask(cache, computer)
    clock.now += 5
    assert await _ask(cache, computer, reuse=False) == ("bypass", None, 5, TOKENS)
    assert (await _ask(cache, computer))[:2] == ("hit", 0)
    computer.step.clear()
    asked = [asyncio.create_task(_ask(cache, computer, reuse=False)) for _ in range(2)]
    await until(lambda: computer.running == 2)
    computer.step.set()
    assert [(await call)[0] for call in asked] == ["bypass"] * 2
    assert (await cache.stats()).bypassed == 3


async def test_together() -> None:
    """Many who ask the same at once are answered by one computation, each from the first token on as it comes."""
    computer = Computer()
    cache = _cache(Clock())
    computer.step.clear()
    asked = [asyncio.create_task(_ask(cache, computer)) for _ in range(20)]
    first = asyncio.create_task(_ask(cache, computer, most=1))
    assert (await first)[3] == TOKENS[:1]  # while the rest is held up
    late = asyncio.create_task(_ask(cache, computer))
    await asyncio.sleep(0)
    computer.step.set()
    answers = [await call for call in (*asked, late)]
    assert sorted(answer[0] for answer in answers) == ["miss", *["shared"] * 20]
    assert all(answer[2:] == (5, TOKENS) for answer in answers)
    assert (computer.started, computer.running, computer.leases) == (1, 0, 0)
    stats = await cache.stats()
    assert (stats.shared, stats.misses, stats.entries) == (21, 1, 1)
    assert stats.saved_tokens == 20 * 3 + 1


async def test_who_waits_does_not_wait_for_background_work() -> None:
    """Interactive work does not join a background computation; background work joins any, preferably an interactive
    one.
    """
    computer = Computer()
    cache = _cache(Clock())
    computer.step.clear()
    asked = []
    for background in (True, True, False, False, True):
        asked.append(asyncio.create_task(_ask(cache, computer, background=background)))
        await asyncio.sleep(0)
    computer.step.set()
    answers = [await call for call in asked]
    assert [answer[0] for answer in answers] == ["miss", "shared", "miss", "shared", "shared"]
    assert all(answer[2:] == (5, TOKENS) for answer in answers)
    assert (computer.started, computer.running, computer.leases) == (2, 0, 0)
    assert (await cache.stats()).entries == 1


async def test_one_of_many_goes_away() -> None:
    """Whoever goes, the first one included, disturbs nobody; the model is held until the last one has read it all."""
    computer = Computer()
    cache = _cache(Clock())
    computer.step.clear()
    asked = [asyncio.create_task(_ask(cache, computer)) for _ in range(3)]
    await until(lambda: computer.running)
    for gone in asked[:2]:
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
    assert (computer.running, computer.leases) == (1, 2)
    computer.step.set()
    assert await asked[2] == ("shared", None, 5, TOKENS)
    assert computer.leases == 0
    assert (await _ask(cache, computer))[0] == "hit"


async def test_all_go_away() -> None:
    """When the last one goes, the computation is stopped before the cancellation is over, and nothing of it is kept."""
    computer = Computer()
    cache = _cache(Clock())
    computer.step.clear()
    asked = [asyncio.create_task(_ask(cache, computer)) for _ in range(3)]
    await until(lambda: computer.running)
    for gone in asked:
        gone.cancel()
    await asyncio.wait(asked)
    assert (computer.running, computer.leases) == (0, 0)
    computer.step.set()
    assert (await cache.stats()).entries == 0
    assert await _ask(cache, computer) == ("miss", None, 5, TOKENS)
    assert computer.started == 2


@pytest.mark.parametrize("turns", range(12))
async def test_leaving_at_any_moment(turns: int) -> None:
    """However early or late a caller goes and the next one comes, the next one is answered whole."""
    computer = Computer()
    store = Failing(1_000_000, 100, Clock())
    cache = _cache(Clock(), store)
    first = asyncio.create_task(_ask(cache, computer))
    for _ in range(turns):
        await asyncio.sleep(0)
    first.cancel()
    second = asyncio.create_task(_ask(cache, computer))
    await asyncio.wait([first])
    assert (await second)[2:] == (5, TOKENS)
    assert (computer.running, computer.leases) == (0, 0)
    assert (await _ask(cache, computer))[0] == "hit"


async def test_cancelled_at_random_moments() -> None:
    """Each question ends, wherever it was, Redis included; no computation goes on, and the next one is answered."""
    computer, numbers = Computer(), itertools.count()
    with own_names() as prefix:
        cache = _cache(Clock(), RedisStore(REDIS_URL, 1_000_000, 100, Clock(), prefix))
        assert await cancel_at_random(lambda: _ask(cache, computer, f"{next(numbers) % 20:064x}"), 0.01) == 0
        assert (computer.running, computer.leases) == (0, 0)
        assert (await _ask(cache, computer))[2:] == (5, TOKENS)
        cache.close()


async def test_reading_little() -> None:
    """A caller who reads nothing, or the first token only, stops what nobody else reads."""
    computer = Computer()
    cache = _cache(Clock())
    computer.step.clear()
    assert (await _ask(cache, computer, most=0))[3] == []
    assert (await _ask(cache, computer, most=1))[3] == TOKENS[:1]
    assert (computer.started, computer.running, computer.leases) == (2, 0, 0)
    assert (await cache.stats()).entries == 0


@pytest.mark.parametrize("fail_at", [-1, 0, 1, 2])
async def test_errors(fail_at: int) -> None:
    """An error goes to all who wait and is never kept: the next one tries again."""
    computer = Computer(failure=TooManyRequests("full", retry_after=1), fail_at=fail_at)
    cache = _cache(Clock())
    answers = await asyncio.gather(*(_ask(cache, computer) for _ in range(4)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [TooManyRequests] * 4
    assert (computer.started, computer.running, computer.leases) == (1, 0, 0)
    computer.failure = None
    assert await _ask(cache, computer) == ("miss", None, 5, TOKENS)


async def test_clear() -> None:
    """All, a model's, or by key; an answer that is being computed meanwhile is given but not kept."""
    computer = Computer()
    cache = _cache(Clock())
    keys = ["0a" * 32, "0b" * 32, "1a" * 32]
    for key, model in zip(keys, "mnm", strict=True):
        await _ask(cache, computer, key, model=model)
    assert await cache.clear(model="m", prefix="1") == 1
    computer.step.clear()
    under_way = asyncio.create_task(_ask(cache, computer, keys[2], model="m"))
    await until(lambda: computer.running)
    assert await cache.clear(model="m") == 1
    assert await cache.clear() == 1
    computer.step.set()
    assert (await under_way)[3] == TOKENS
    assert (await cache.stats()).entries == 0


async def test_loops_of_their_own() -> None:
    """Callers on several event loops share what is kept, and none waits for another loop's computation."""
    cache = _cache(Clock())
    found: list[str] = []

    def elsewhere() -> None:
        found.extend(asyncio.run(_ask(cache, Computer()))[0] for _ in range(5))

    threads = [threading.Thread(target=elsewhere) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    stats = await cache.stats()
    assert found.count("hit") == stats.hits >= 16
    assert found.count("miss") == stats.misses == 20 - stats.hits
    assert stats.entries == 1


# Stores that fail


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Failing:
    return Failing(1_000_000, 100, clock)


async def test_store_fails(clock: Clock, store: Failing, caplog: pytest.LogCaptureFixture) -> None:
    """Answers are computed without it, it is left alone for a while, and used again when it works."""
    computer, cache = Computer(), _cache(clock, store)
    await _ask(cache, computer)
    store.failing = True
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            assert await _ask(cache, computer) == ("miss", None, 5, TOKENS)
    assert store.calls == 3
    assert [record.getMessage() for record in caplog.records] == [
        "answers are neither read from the cache nor stored for 5 s: planted"
    ]
    stats = await cache.stats()
    assert (stats.errors, stats.entries, stats.hits) == (1, 0, 0)
    store.failing = False
    clock.now += PAUSE_SECONDS
    assert (await _ask(cache, computer))[0] == "hit"
    assert (await cache.stats()).entries == 1


async def test_store_fails_to_keep(clock: Clock, store: Failing) -> None:
    """A failure while an answer is put away costs the caller nothing."""
    computer, cache = Computer(), _cache(clock, store)
    computer.step.clear()
    asked = asyncio.create_task(_ask(cache, computer))
    await until(lambda: computer.running)
    store.failing = True
    computer.step.set()
    assert await asked == ("miss", None, 5, TOKENS)
    assert (cache.counters.errors, cache.counters.misses) == (1, 1)


async def test_store_hangs(clock: Clock, store: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer is given up after a moment; many who came at once wait for that once."""
    monkeypatch.setattr("runtime.response_cache.cache._STORE_TIMEOUT_SECONDS", 0.05)
    computer, cache = Computer(), _cache(clock, store)
    hung = threading.Event()
    store.delay = hung.wait
    try:
        answers = await asyncio.gather(*(_ask(cache, computer) for _ in range(100)))
        assert sorted({answer[0] for answer in answers}) == ["miss", "shared"]
        assert all(answer[3] == TOKENS for answer in answers)
    finally:
        hung.set()
    assert store.calls < 100


async def test_clear_fails(clock: Clock, store: Failing) -> None:
    """Who asks for answers to be dropped is told if they could not be."""
    cache = _cache(clock, store)
    store.failing = True
    for _ in range(2):  # the second time it is not even tried
        with pytest.raises(CacheUnavailable, match="is unavailable") as caught:
            await cache.clear()
        assert (caught.value.status, caught.value.retry_after) == (503, PAUSE_SECONDS)


async def test_damaged_answer(clock: Clock, store: Failing) -> None:
    """A kept answer whose checksum is wrong is dropped, counted, and computed again."""
    computer, cache = Computer(), _cache(clock, store)
    await _ask(cache, computer)
    value = store.get(KEY)
    assert value is not None
    for damaged in (value[:-3] + b"x" + value[-2:], b"", value[:40]):
        store.put(KEY, "m", damaged)
        errors = cache.counters.errors
        assert await _ask(cache, computer) == ("miss", None, 5, TOKENS)
        assert cache.counters.errors == errors + 1
        assert (await _ask(cache, computer))[0] == "hit"


async def test_another_keys_answer(clock: Clock, store: Failing) -> None:
    """An answer in another's place is damage too."""
    computer, cache = Computer(), _cache(clock, store)
    await _ask(cache, computer)
    value = store.get(KEY)
    assert value is not None
    store.put("1" * 64, "m", value)
    assert (await _ask(cache, computer, "1" * 64))[0] == "miss"


async def test_results_of_encoders(clock: Clock, store: Failing) -> None:
    """Each input's result is computed again if it is damaged, too old or not to be had, and only then."""
    cache, computed = _cache(clock, store), list[list[int]]()
    keys = [f"{number:064x}" for number in range(100)]

    async def compute(missing: Sequence[int]) -> list[EncoderOutput]:
        computed.append(list(missing))
        return [EncoderOutput(number, np.array([number], np.float32)) for number in missing]

    async def ask(*wanted: str, max_age: float = 60) -> str:
        found, use = await cache.outputs(wanted, "m", compute, reuse=True, max_age=max_age)
        assert [output.values.tolist() for output in found] == [[output.tokens] for output in found]
        return use.status

    assert await ask(*keys) == "miss"
    assert await ask(*keys) == "hit"
    store.put(keys[40], "m", b"x" * 50)
    assert await ask(*keys) == "miss"
    clock.now += 10
    assert await ask(keys[0], max_age=5) == "miss"
    assert await ask(keys[0], max_age=5) == "hit"
    store.failing = True
    assert await ask(keys[0]) == "miss"
    assert computed == [list(range(100)), [40], [0], [0]]
    assert cache.counters.errors == 2


async def test_results_of_encoders_in_redis_take_one_round_trip(clock: Clock, tmp_path: Path) -> None:
    """The results of a request's inputs are read with one command, and stored with one."""
    server = OwnRedis(tmp_path)
    client, store = redis.Redis.from_url(server.url), RedisStore(server.url, 1_000_000, 100, clock)
    try:
        cache, keys = _cache(clock, store), [f"{number:064x}" for number in range(100)]

        async def compute(missing: Sequence[int]) -> list[EncoderOutput]:
            return [EncoderOutput(number, np.array([number], np.float32)) for number in missing]

        async def ask(*wanted: str) -> tuple[str, int]:
            client.config_resetstat()
            found, use = await cache.outputs(wanted, "m", compute, reuse=True, max_age=60)
            assert [output.values.tolist() for output in found] == [[output.tokens] for output in found]
            return use.status, client.info("commandstats")["cmdstat_evalsha"]["calls"]

        await ask("f" * 64)  # loads the scripts
        assert await ask(*keys[:60]) == ("miss", 2)
        assert await ask(*keys[:60]) == ("hit", 1)
        assert await ask(*keys) == ("miss", 2)
        assert await ask(*keys) == ("hit", 1)
        assert cache.counters.errors == 0
    finally:
        store.close()
        client.close()
        server.kill()


def test_loop_ends_in_the_middle(clock: Clock, store: Failing) -> None:
    """A loop that ends while an answer is being computed leaves nothing behind, and the next loop begins anew."""
    cache, computer = _cache(clock, store), Computer()

    async def cut_short() -> None:
        computer.step.clear()
        call = asyncio.create_task(_ask(cache, computer))
        await until(lambda: computer.running)
        assert not call.done()

    asyncio.run(cut_short())
    assert (computer.running, computer.leases, cache._flights) == (0, 0, {})
    again = Computer()
    assert asyncio.run(_ask(cache, again))[0] == "miss"
