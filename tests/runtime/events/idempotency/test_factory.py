"""runtime.events.idempotency.factory: one protocol, three stores, on real files and a real Redis."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as client

from runtime.events.idempotency.factory import open_records
from runtime.events.idempotency.memory import MemoryRecords
from runtime.events.idempotency.records import Done, InProgress, Mismatch, Records, RecordsUnavailable, Started
from runtime.events.idempotency.redis import RedisRecords
from runtime.events.idempotency.sqlite import Moment, SqliteRecords
from runtime.settings import Settings
from runtime.storage.redis import SharedRedis
from tests.support.cancelling import cancel_at_random
from tests.support.redis_server import REDIS_URL, own_names

HOUR = 3600.0
DAY = 24 * HOUR
LEASE = 10 * HOUR
STORES = ["memory", "sqlite", "redis"]


class Place:
    """Where records are, with a clock that moves when it is told to: by hours, beside which a test takes no time."""

    def __init__(self, kind: str, folder: Path, prefix: str) -> None:
        self.kind, self.now = kind, 1_700_000_000.0
        self._prefix = prefix
        self._server = client.Redis.from_url(REDIS_URL) if kind == "redis" else None
        self._folder = folder

    def open(self) -> Records:
        """Records there; memory's are new ones each time."""
        if self.kind == "memory":
            return MemoryRecords(clock=lambda: self.now)
        if self.kind == "sqlite":
            return SqliteRecords(self._folder / "events.sqlite", lambda: Moment("a boot", self.now, 0))
        return RedisRecords(SharedRedis(REDIS_URL), self._prefix)

    def advance(self, hours: float) -> None:
        """Let time pass, or go back. Redis's clock is not ours to set, so all that is there gets older instead."""
        self.now += hours * HOUR
        if self._server is None:
            return
        for key in self._server.keys(f"{self._prefix}*"):
            left = self._server.pttl(key) - int(hours * HOUR * 1000)
            for field in ("since", "until"):
                self._server.hincrby(key, field, -int(hours * HOUR * 1000))
            self._server.pexpire(key, left)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path, patient_redis: None) -> Any:
    if request.param == "redis":
        with own_names() as prefix:
            found = Place("redis", tmp_path, prefix)
            yield found
            found.close()
        return
    yield Place(request.param, tmp_path, "")


@pytest.fixture
async def records(place: Place) -> AsyncIterator[Records]:
    opened = place.open()
    yield opened
    await opened.close()


async def test_done_once(records: Records) -> None:
    """Begun, it is taken for everybody else; completed, it has its result, byte for byte."""
    result = bytes(range(256)) * 4000
    assert await records.begin("k", "f", "a", LEASE) == Started(0)
    found = await records.begin("k", "f", "b", LEASE)
    assert isinstance(found, InProgress)
    assert LEASE - 60 < found.seconds <= LEASE
    assert await records.complete("k", "a", result, DAY)
    assert await records.begin("k", "f", "b", LEASE) == Done(result)
    assert await records.begin("k", "f", "a", LEASE) == Done(result)
    assert await records.begin("other", "f", "b", LEASE) == Started(0)


async def test_empty_result(records: Records) -> None:
    """A result of no bytes is one."""
    await records.begin("k", "f", "a", LEASE)
    assert await records.complete("k", "a", b"", DAY)
    assert await records.begin("k", "f", "b", LEASE) == Done(b"")


async def test_other_payload(records: Records, place: Place) -> None:
    """The same key with another fingerprint is told so, in work, lapsed and done, and changes nothing."""
    await records.begin("k", "f", "a", LEASE)
    assert await records.begin("k", "other", "b", LEASE) == Mismatch()
    place.advance(11)
    assert await records.begin("k", "other", "b", LEASE) == Mismatch()
    assert await records.complete("k", "a", b"r", DAY)
    assert await records.begin("k", "other", "a", LEASE) == Mismatch()
    assert await records.begin("k", "f", "b", LEASE) == Done(b"r")


async def test_lapsed(records: Records, place: Place) -> None:
    """Work that is not renewed goes to the next who asks, who hears how many have let it lapse."""
    await records.begin("k", "f", "a", LEASE)
    for lapsed, holder in enumerate("bcd", start=1):
        place.advance(9.9)
        assert isinstance(await records.begin("k", "f", holder, LEASE), InProgress)
        place.advance(0.2)
        assert await records.begin("k", "f", holder, LEASE) == Started(lapsed)


async def test_renewed(records: Records, place: Place) -> None:
    """Work is the holder's for as long as it renews it, even late if nobody has asked for it meanwhile."""
    await records.begin("k", "f", "a", LEASE)
    for _ in range(4):
        place.advance(9)
        assert await records.renew("k", "a", LEASE)
        assert isinstance(await records.begin("k", "f", "b", LEASE), InProgress)
    place.advance(12)
    assert await records.renew("k", "a", LEASE)
    assert isinstance(await records.begin("k", "f", "b", LEASE), InProgress)


async def test_too_late(records: Records, place: Place) -> None:
    """Who comes back to work that has passed to another can neither renew, complete nor release it."""
    await records.begin("k", "f", "a", LEASE)
    place.advance(11)
    assert await records.begin("k", "f", "b", LEASE) == Started(1)
    assert not await records.renew("k", "a", LEASE)
    assert not await records.complete("k", "a", b"late", DAY)
    await records.release("k", "a")
    assert isinstance(await records.begin("k", "f", "c", LEASE), InProgress)
    assert await records.complete("k", "b", b"first", DAY)
    assert not await records.complete("k", "a", b"late", DAY)
    assert not await records.renew("k", "a", LEASE)
    assert await records.begin("k", "f", "c", LEASE) == Done(b"first")


async def test_nobodys(records: Records) -> None:
    """What was never begun is renewed, completed and released by nobody."""
    assert not await records.renew("k", "a", LEASE)
    assert not await records.complete("k", "a", b"r", DAY)
    await records.release("k", "a")
    assert await records.begin("k", "f", "b", LEASE) == Started(0)


async def test_told_twice(records: Records) -> None:
    """Whoever does not know whether it was heard says it again, to the same effect."""
    assert await records.begin("k", "f", "a", LEASE) == Started(0)
    assert await records.begin("k", "f", "a", LEASE) == Started(0)
    assert await records.complete("k", "a", b"r", DAY)
    assert await records.complete("k", "a", b"other", DAY)
    assert not await records.renew("k", "a", LEASE)
    await records.release("k", "a")
    assert await records.begin("k", "f", "b", LEASE) == Done(b"r")


async def test_released(records: Records, place: Place) -> None:
    """Work that is given back is as before: never begun, or let lapse by as many as then."""
    await records.begin("k", "f", "a", LEASE)
    await records.release("k", "a")
    await records.release("k", "a")
    assert await records.begin("k", "f", "b", LEASE) == Started(0)
    place.advance(11)
    assert await records.begin("k", "f", "c", LEASE) == Started(1)
    await records.release("k", "c")
    assert not await records.renew("k", "c", LEASE)
    assert not await records.complete("k", "c", b"r", DAY)
    assert await records.begin("k", "f", "d", LEASE) == Started(1)


async def test_forgotten(records: Records, place: Place) -> None:
    """A result is kept for its time and no longer; work that nobody takes up again is forgotten a day later."""
    await records.begin("done", "f", "a", LEASE)
    await records.complete("done", "a", b"r", DAY)
    await records.begin("lapsed", "f", "a", LEASE)
    place.advance(23)
    assert await records.begin("done", "f", "b", LEASE) == Done(b"r")
    place.advance(2)
    assert await records.begin("done", "other", "b", LEASE) == Started(0)
    place.advance(10)
    assert not await records.complete("lapsed", "a", b"r", DAY)
    assert await records.begin("lapsed", "other", "b", LEASE) == Started(0)


async def test_the_clock_goes_back(records: Records, place: Place) -> None:
    """Work is shut out for no longer than its lease was to last, from when somebody asks."""
    await records.begin("k", "f", "a", LEASE)
    place.advance(-100)
    found = await records.begin("k", "f", "b", LEASE)
    assert isinstance(found, InProgress)
    assert found.seconds <= LEASE
    place.advance(9)
    assert isinstance(await records.begin("k", "f", "b", LEASE), InProgress)
    place.advance(1.1)
    assert await records.begin("k", "f", "b", LEASE) == Started(1)
    assert not await records.complete("k", "a", b"late", DAY)


async def test_the_clock_goes_forth(records: Records, place: Place) -> None:
    """Work that seems lapsed goes to another: of the two that do it now, one completes it."""
    await records.begin("k", "f", "a", LEASE)
    place.advance(20)
    assert await records.begin("k", "f", "b", LEASE) == Started(1)
    assert [await records.complete("k", holder, holder.encode(), DAY) for holder in "ab"] == [False, True]
    assert await records.begin("k", "f", "c", LEASE) == Done(b"b")


async def test_a_crowd(place: Place) -> None:
    """Of fifty that begin the same at once, over one connection each or shared, one does."""
    opened = [place.open()] if place.kind == "memory" else [place.open() for _ in range(5)]
    for turn in range(5):
        found = await asyncio.gather(
            *(opened[n % len(opened)].begin(f"k{turn}", "f", f"holder {n}", LEASE) for n in range(50))
        )
        assert sorted(type(one).__name__ for one in found) == [*["InProgress"] * 49, "Started"]
    for one in opened:
        await one.close()


async def test_cancelled(place: Place) -> None:
    """Whoever is cancelled while it begins holds nothing afterwards, wherever it was cut off."""
    records = place.open()
    await records.begin("first", "f", "a", LEASE)
    for turns in range(12):
        task = asyncio.create_task(records.begin(f"k{turns}", "f", "a", LEASE))
        for _ in range(turns):
            await asyncio.sleep(0)
        done = task.done()
        task.cancel()
        await asyncio.wait({task})
        expected = InProgress if done else Started
        assert isinstance(await records.begin(f"k{turns}", "f", "b", LEASE), expected)
    await records.close()


@pytest.mark.parametrize("place", ["sqlite", "redis"], indirect=True)
async def test_cancelled_at_random_moments(place: Place) -> None:
    """Each piece of work ends, and is done or free afterwards."""
    records, numbers = place.open(), itertools.count()

    async def work() -> None:
        key = str(next(numbers))
        await records.begin(key, "f", "a", LEASE)
        try:
            await records.renew(key, "a", LEASE)
            await records.complete(key, "a", b"", LEASE)
        finally:
            await asyncio.shield(records.release(key, "a"))

    assert await cancel_at_random(work, 0.01) == 0
    for number in range(next(numbers)):
        assert isinstance(await records.begin(str(number), "f", "b", LEASE), Started | Done)
    await records.close()


@pytest.mark.parametrize("place", ["sqlite", "redis"], indirect=True)
async def test_shared_and_lasting(place: Place) -> None:
    """Two on one place are one, and what is known outlives them."""
    first, second = place.open(), place.open()
    await first.begin("done", "f", "a", LEASE)
    assert isinstance(await second.begin("done", "f", "b", LEASE), InProgress)
    await first.complete("done", "a", b"r", DAY)
    assert await second.begin("done", "f", "b", LEASE) == Done(b"r")
    await first.begin("running", "f", "a", LEASE)
    await first.close()
    await second.close()
    again = place.open()
    assert await again.begin("done", "f", "b", LEASE) == Done(b"r")
    assert isinstance(await again.begin("running", "f", "b", LEASE), InProgress)
    assert await again.complete("running", "a", b"late", DAY)
    await again.close()


class Model:
    """The protocol in the plainest words: what every store must say."""

    def __init__(self) -> None:
        self.now = 0.0
        self.known: dict[str, dict[str, Any]] = {}

    def _get(self, key: str) -> dict[str, Any] | None:
        found = self.known.get(key)
        if found and self.now < found["ends"] + (0 if "result" in found else 24):
            return found
        self.known.pop(key, None)
        return None

    def begin(self, key: str, payload: str, holder: str, hours: float) -> Any:
        found = self._get(key)
        if found is None:
            found = self.known[key] = {"payload": payload, "holder": None, "lapsed": 0}
        elif found["payload"] != payload:
            return Mismatch
        elif "result" in found:
            return Done(found["result"])
        elif found["holder"] not in (None, holder):
            if self.now < found["ends"]:
                return InProgress
            found["lapsed"] += 1
        found.update(holder=holder, ends=self.now + hours)
        return Started(found["lapsed"])

    def renew(self, key: str, holder: str, hours: float) -> bool:
        found = self._get(key)
        if not found or found["holder"] != holder or "result" in found:
            return False
        found["ends"] = self.now + hours
        return True

    def complete(self, key: str, holder: str, result: bytes, hours: float) -> bool:
        found = self._get(key)
        if not found or found["holder"] != holder:
            return False
        if "result" not in found:
            found.update(result=result, ends=self.now + hours)
        return True

    def release(self, key: str, holder: str) -> None:
        found = self._get(key)
        if found and found["holder"] == holder and "result" not in found:
            if found["lapsed"]:
                found.update(holder=None, ends=self.now)
            else:
                del self.known[key]


def _steps(chance: random.Random) -> Iterator[tuple[Any, ...]]:
    """Some calls. Leases end at halves of an hour, time passes in whole ones: none ends just when it is asked for."""
    for _ in range(30):
        key, holder, hours = chance.choice("kkl"), chance.choice("abc"), chance.choice([1.5, 10.5])
        yield chance.choice(
            [
                ("begin", key, chance.choice("ffffg"), holder, hours),
                ("begin", key, "f", holder, hours),
                ("renew", key, holder, hours),
                ("complete", key, holder, chance.randbytes(3), hours),
                ("release", key, holder),
                ("advance", chance.choice([1, 2, 8, 11, 25, 40])),
            ]
        )


@pytest.mark.parametrize(("place", "number"), [("memory", 2000), ("sqlite", 300), ("redis", 200)], indirect=["place"])
async def test_against_the_model(place: Place, number: int) -> None:
    """Whatever is asked in whatever order, every store says what the model says."""
    records, said = place.open(), set()
    for seed in range(number):
        model = Model()
        for step, (name, *values) in enumerate(_steps(random.Random(seed))):
            if name == "advance":
                place.advance(values[0])
                model.now += values[0]
                continue
            expected = getattr(model, name)(*values)
            inputs = [value * HOUR if isinstance(value, float) else value for value in values]
            answer = await getattr(records, name)(f"{seed} {inputs[0]}", *inputs[1:])
            said.add(f"{name} {expected}".split("result")[0])
            agree = isinstance(answer, expected) if isinstance(expected, type) else answer == expected
            assert agree, f"seed {seed}, step {step}, {name} {values}: {answer} instead of {expected}"
    await records.close()
    assert {f"begin Started(lapsed={lapsed})" for lapsed in range(3)} | {"begin Done("} <= said


@pytest.mark.parametrize(
    ("kind", "made"), [("memory", MemoryRecords), ("sqlite", SqliteRecords), ("redis", RedisRecords)]
)
async def test_open(kind: str, made: Callable[..., Records], tmp_path: Path) -> None:
    """IDEMPOTENCY names the store; nothing is touched before the first use."""
    settings = Settings(idempotency=kind, cache_dir=tmp_path / "cache", redis_url="redis://127.0.0.1:1/0")
    records = open_records(settings)
    assert type(records) is made
    assert os.listdir(tmp_path) == []
    if kind == "sqlite":
        assert await records.begin("k", "f", "a", 1) == Started(0)
        assert "events.sqlite" in os.listdir(tmp_path / "cache")
    if kind == "redis":
        with pytest.raises(RecordsUnavailable, match="Redis"):
            await records.begin("k", "f", "a", 1)
    await records.close()


def test_off() -> None:
    """Without records there are none."""
    assert open_records(Settings(idempotency="off")) is None
