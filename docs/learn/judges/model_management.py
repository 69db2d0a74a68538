"""Judges the pool of models."""

from __future__ import annotations

import asyncio
from types import ModuleType
from typing import Any

_SIZES = {"a": 4, "b": 4, "c": 4, "huge": 11}


class _Disk:
    """Loads models, and remembers it."""

    def __init__(self, exercise: ModuleType, budget: int = 10) -> None:
        self.loads: list[str] = []
        self.broken = False
        self.pool: Any = exercise.Pool(_SIZES, self._load, budget)

    async def _load(self, name: str) -> str:
        self.loads.append(name)
        await asyncio.sleep(0.005)
        if self.broken:
            raise OSError("damaged")
        return name.upper()

    async def use(self, *names: str) -> None:
        for name in names:
            async with self.pool.lease(name) as model:
                assert model == name.upper()


async def check_once(exercise: ModuleType) -> None:
    """A model is loaded on its first use, once, however many ask for it at the same time."""
    disk = _Disk(exercise)
    await asyncio.gather(*[disk.use("a") for _ in range(5)])
    await disk.use("a")
    assert disk.loads == ["a"], disk.loads


async def check_least_recently_used(exercise: ModuleType) -> None:
    """For a third model the least recently used one goes."""
    disk = _Disk(exercise)
    await disk.use("a", "b", "a", "c")
    assert disk.pool.loaded == {"a", "c"}


async def check_lent(exercise: ModuleType) -> None:
    """A model that is lent stays, though it was used least recently."""
    disk = _Disk(exercise)
    async with disk.pool.lease("a"):
        await disk.use("b", "c")
        assert disk.pool.loaded == {"a", "c"}


async def check_wait(exercise: ModuleType) -> None:
    """If all models are lent, the caller waits until one is returned."""
    disk = _Disk(exercise)
    async with disk.pool.lease("a"):
        async with disk.pool.lease("b"):
            waiting = asyncio.ensure_future(disk.use("c"))
            await asyncio.sleep(0.03)
            assert not waiting.done()
            assert "c" not in disk.loads, "it was loaded beyond the budget"
        await waiting
    assert disk.pool.loaded == {"a", "c"}


async def check_loading_counts(exercise: ModuleType) -> None:
    """Three models that are asked for at the same time never exceed the budget together."""
    disk = _Disk(exercise)
    tasks = [asyncio.ensure_future(disk.use(name)) for name in "abc"]
    await asyncio.sleep(0.002)
    assert len(disk.loads) <= 2, f"{disk.loads} are being loaded"
    await asyncio.gather(*tasks)
    assert sorted(disk.loads) == ["a", "b", "c"]


async def check_too_large(exercise: ModuleType) -> None:
    """A model that can never fit is refused at once, and no other is unloaded for it."""
    disk = _Disk(exercise)
    await disk.use("a", "b")
    for name, error in (("huge", exercise.TooLarge), ("none", KeyError)):
        try:
            await disk.use(name)
        except error:
            continue
        raise AssertionError(f"{name} was lent")
    assert disk.pool.loaded == {"a", "b"}


async def check_failed_load(exercise: ModuleType) -> None:
    """A failed load is an error for its callers, takes no room, and is tried again."""
    disk = _Disk(exercise)
    disk.broken = True
    results = await asyncio.gather(disk.use("a"), disk.use("a"), return_exceptions=True)
    assert [type(result) for result in results] == [OSError, OSError], results
    assert disk.loads == ["a"], disk.loads
    disk.broken = False
    await disk.use("b", "a")
    assert disk.pool.loaded == {"a", "b"}


async def check_error_inside(exercise: ModuleType) -> None:
    """A model comes back also if the request fails."""
    disk = _Disk(exercise)
    for name in ("a", "b"):
        try:
            async with disk.pool.lease(name):
                raise ValueError
        except ValueError:
            pass
    async with asyncio.timeout(1):
        await disk.use("c")
