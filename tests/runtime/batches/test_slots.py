"""runtime.batches.slots: how many run, in which order, and alone."""

from __future__ import annotations

import asyncio

from runtime.batches.slots import Slots
from runtime.cancellation import cancel_and_wait


async def test_in_order() -> None:
    """A slot goes to the one that has waited longest."""
    slots, order = Slots(1), list[int]()

    async def take(number: int) -> None:
        await slots.acquire()
        order.append(number)
        slots.release()

    await slots.acquire()
    tasks = [asyncio.create_task(take(number)) for number in range(5)]
    await asyncio.sleep(0)
    slots.release()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]


async def test_alone() -> None:
    """One that is to run alone waits until the others have ended, and none runs beside it."""
    slots, running = Slots(3), list[str]()
    most = 0

    async def work(name: str, *, alone: bool) -> None:
        nonlocal most
        await slots.acquire(alone=alone)
        running.append(name)
        most = max(most, len(running))
        assert not alone or running == [name]
        assert alone or "alone" not in running
        await asyncio.sleep(0)
        running.remove(name)
        slots.release(alone=alone)

    names = ["a", "b", "alone", "c", "alone", "d", "e", "f"]
    await asyncio.gather(*(work(name, alone=name == "alone") for name in names))
    assert most > 1


async def test_cancelled_while_waiting_alone() -> None:
    """One that gives up returns what it has collected."""
    slots = Slots(2)
    await slots.acquire()
    waiting = asyncio.create_task(slots.acquire(alone=True))
    await asyncio.sleep(0)
    await cancel_and_wait(waiting)
    slots.release()
    await slots.acquire(alone=True)
