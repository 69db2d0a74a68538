"""runtime.events.idempotency.memory: what goes where there is no room."""

from __future__ import annotations

import pytest

from runtime.events.idempotency.memory import MemoryRecords
from runtime.events.idempotency.records import Done, InProgress, RecordsUnavailable, Started
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def _done(records: MemoryRecords, key: str, result: bytes, seconds: float = 1000) -> None:
    assert await records.begin(key, "f", "a", 10) == Started(0)
    assert await records.complete(key, "a", result, seconds)


async def test_results_go_first(clock: Clock) -> None:
    """Where there are too many, the oldest result goes; what is worked on stays; then nothing more can be begun."""
    records = MemoryRecords(3, clock=clock)
    await records.begin("running", "f", "a", 10)
    await _done(records, "first", b"1")
    await _done(records, "second", b"2")
    assert await records.begin("new", "f", "a", 10) == Started(0)
    assert isinstance(await records.begin("running", "f", "b", 10), InProgress)
    assert await records.begin("second", "f", "b", 10) == Done(b"2")
    assert await records.begin("first", "f", "a", 10) == Started(0)
    assert len(records) == 3
    with pytest.raises(RecordsUnavailable, match="3 events are in progress"):
        await records.begin("another", "f", "a", 10)
    assert await records.renew("running", "a", 10)
    await records.release("first", "a")
    assert await records.begin("another", "f", "a", 10) == Started(0)


async def test_then_what_was_let_lapse(clock: Clock) -> None:
    """Without results to drop, work that nobody renews any more goes; never what is renewed."""
    records = MemoryRecords(2, clock=clock)
    await records.begin("renewed", "f", "a", 10)
    await records.begin("lapsed", "f", "a", 10)
    clock.now += 9
    await records.renew("renewed", "a", 10)
    clock.now += 1
    assert await records.begin("new", "f", "a", 10) == Started(0)
    assert isinstance(await records.begin("renewed", "f", "b", 10), InProgress)
    assert not await records.complete("lapsed", "a", b"r", 10)


async def test_bytes(clock: Clock) -> None:
    """All results together are bounded; the oldest go, and one that is larger even alone is not kept."""
    records = MemoryRecords(100, 10, clock)
    for number in range(5):
        await _done(records, str(number), b"four")
    assert len(records) == 2
    assert await records.begin("4", "f", "b", 10) == Done(b"four")
    assert await records.begin("2", "f", "b", 10) == Started(0)
    await _done(records, "large", bytes(11))
    assert await records.begin("large", "f", "b", 10) == Started(0)
    assert await records.begin("4", "f", "b", 10) == Started(0)
    await _done(records, "small", bytes(10))
    assert await records.begin("small", "f", "b", 10) == Done(bytes(10))


async def test_time_clears_up(clock: Clock) -> None:
    """What has had its time goes as other work comes, and its bytes with it."""
    records = MemoryRecords(clock=clock)
    for number in range(100):
        await _done(records, f"done {number}", bytes(100), 1000)
        await records.begin(f"lapsed {number}", "f", "a", 10)
    clock.now += 1000
    assert await records.begin("new", "f", "a", 10) == Started(0)
    assert len(records) == 101
    clock.now += 100_000
    await records.begin("newer", "f", "a", 10)
    assert len(records) == 1
    await records.complete("newer", "a", bytes(64 * 2**20), 10)
    assert await records.begin("newer", "f", "b", 10) == Done(bytes(64 * 2**20))
