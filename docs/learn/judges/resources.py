"""Judges the cache."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any


class _Work:
    """Counts computations; with ``wait`` they take until it is set."""

    def __init__(self, wait: asyncio.Event | None = None) -> None:
        self.calls: list[str] = []
        self._wait = wait

    def of(self, key: str, answer: bytes = b"x" * 10, error: Exception | None = None) -> Callable[[], Awaitable[bytes]]:
        async def compute() -> bytes:
            self.calls.append(key)
            if self._wait is not None:
                await self._wait.wait()
            if error is not None:
                raise error
            return answer

        return compute


async def _get(cache: Any, work: _Work, *keys: str, size: int = 10) -> None:
    for key in keys:
        await cache.get(key, work.of(key, b"x" * size))


async def check_hit(exercise: ModuleType) -> None:
    """An answer is computed once."""
    cache, work = exercise.Cache(100, 60), _Work()
    await _get(cache, work, "a", "b", "a")
    assert work.calls == ["a", "b"]


async def check_size(exercise: ModuleType) -> None:
    """Beyond the limit the least recently used answer goes, not the oldest."""
    cache, work = exercise.Cache(20, 60), _Work()
    await _get(cache, work, "a", "b", "a", "c", "a", "b")
    assert work.calls == ["a", "b", "c", "b"], work.calls


async def check_too_large(exercise: ModuleType) -> None:
    """An answer larger than the limit is returned, and removes no other."""
    cache, work = exercise.Cache(20, 60), _Work()
    await _get(cache, work, "a")
    assert await cache.get("huge", work.of("huge", b"y" * 21)) == b"y" * 21
    await _get(cache, work, "a")
    assert work.calls == ["a", "huge"]


async def check_expiry(exercise: ModuleType) -> None:
    """After its time an answer is computed again."""
    now = 0.0
    cache, work = exercise.Cache(100, 60, lambda: now), _Work()
    await _get(cache, work, "a")
    now = 59.0
    await _get(cache, work, "a")
    now = 60.5
    await _get(cache, work, "a")
    assert work.calls == ["a", "a"], work.calls


async def check_shared(exercise: ModuleType) -> None:
    """Calls at the same time share one computation."""
    wait = asyncio.Event()
    cache, work = exercise.Cache(100, 60), _Work(wait)
    tasks = [asyncio.ensure_future(cache.get("a", work.of("a", b"1"))) for _ in range(5)]
    await asyncio.sleep(0.01)
    wait.set()
    assert await asyncio.gather(*tasks) == [b"1"] * 5
    assert work.calls == ["a"]


async def check_error(exercise: ModuleType) -> None:
    """An error reaches all that wait for it, and the next call computes again."""
    wait = asyncio.Event()
    cache, work = exercise.Cache(100, 60), _Work(wait)
    tasks = [asyncio.ensure_future(cache.get("a", work.of("a", error=OSError("no")))) for _ in range(2)]
    await asyncio.sleep(0.01)
    wait.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [OSError, OSError], results
    assert await cache.get("a", work.of("a", b"2")) == b"2"
    assert work.calls == ["a", "a"]


async def check_cancelled_caller(exercise: ModuleType) -> None:
    """The caller that came first goes away, and the others still get the answer, computed once."""
    wait = asyncio.Event()
    cache, work = exercise.Cache(100, 60), _Work(wait)
    first, second = [asyncio.ensure_future(cache.get("a", work.of("a", b"1"))) for _ in range(2)]
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0.01)
    wait.set()
    assert await second == b"1"
    assert first.cancelled()
    assert work.calls == ["a"]
