"""Cancels tasks at random moments."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tests.support.soak import soak

CANCELLATIONS = soak(2_000, 40)
"""The number of tasks that each test cancels."""

_END_SECONDS = 20.0  # a cancelled task that has not ended by then has swallowed its cancellation, on any machine


async def cancel_at_random(work: Callable[[], Awaitable[Any]], seconds: float) -> int:
    """Start and cancel ``CANCELLATIONS`` tasks, one after the other, each of which calls ``work`` in an endless loop.

    Args:
        work: the call under test.
        seconds: the longest time before a task is cancelled; a seeded generator draws the moment.

    Returns:
        The number of tasks that continued after they were cancelled.

    Raises:
        Exception: the error of a task that failed instead of being cancelled.
    """

    async def loop() -> None:
        nonlocal begun
        while True:
            begun += 1
            await work()

    draw = random.Random(18)
    went_on = begun = 0
    for number in range(CANCELLATIONS):
        task = asyncio.create_task(loop())
        if number % 2:
            await asyncio.sleep(draw.uniform(0, seconds))
        else:  # early, counted in iterations of the event loop: most calls take a few of them
            for _ in range(draw.randrange(40)):
                await asyncio.sleep(0)
        before, end = begun, time.monotonic() + _END_SECONDS
        task.cancel()
        while not task.done() and begun == before and time.monotonic() < end:
            await asyncio.wait({task}, timeout=0.05)
        if not task.done():
            went_on += 1
            while not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=0.1)
        if not task.cancelled():
            task.result()
    return went_on
