"""Judges the concurrent calls."""

from __future__ import annotations

import asyncio
from types import ModuleType


async def check_order(exercise: ModuleType) -> None:
    """The results have the order of the items, not that in which calls end."""

    async def slow(number: int) -> int:
        await asyncio.sleep((3 - number) / 1000)
        return number * 10

    assert await exercise.map_limited(slow, range(4), 4) == [0, 10, 20, 30]


async def check_limit(exercise: ModuleType) -> None:
    """At most the limit runs at once, and that many do."""
    running = peak = 0

    async def call(_: int) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1

    await exercise.map_limited(call, range(20), 3)
    assert peak == 3, f"{peak} at once"


async def check_wrong_limit(exercise: ModuleType) -> None:
    """A limit below 1 is a ValueError, not an endless wait."""
    try:
        await exercise.map_limited(asyncio.sleep, [0], 0)
    except ValueError:
        return
    raise AssertionError("no ValueError")


async def check_failure(exercise: ModuleType) -> None:
    """The first failure is raised as it is, and all other calls have ended by then."""
    ended = []

    async def call(number: int) -> None:
        if number == 1:
            raise KeyError("one")
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append(number)

    before = asyncio.all_tasks()
    try:
        await exercise.map_limited(call, range(3), 3)
    except KeyError:
        assert sorted(ended) == [0, 2], f"ended: {ended}"
        assert asyncio.all_tasks() == before, "tasks are left"
        return
    except BaseException as error:
        raise AssertionError(f"raised {type(error).__name__} instead of KeyError") from error
    raise AssertionError("nothing was raised")


async def check_cancelled(exercise: ModuleType) -> None:
    """If the caller is cancelled, so are the calls."""
    ended = []

    async def call(number: int) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(number)

    task = asyncio.ensure_future(exercise.map_limited(call, range(2), 2))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert sorted(ended) == [0, 1]
