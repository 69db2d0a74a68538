"""Limits how many rows run concurrently, fairly between batches, and lets one run alone."""

from __future__ import annotations

import asyncio


class Slots:
    """Slots that are given in the order in which they were asked for, so that batches take turns.

    Args:
        number: the number of slots.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._free = asyncio.Semaphore(number)
        self._collecting = asyncio.Lock()

    async def acquire(self, *, alone: bool = False) -> None:
        """Wait for a slot, or for all of them to run ``alone``."""
        if not alone:
            await self._free.acquire()
            return
        async with self._collecting:  # two that hold half of the slots each would wait for each other
            held = 0
            try:
                while held < self._number:
                    await self._free.acquire()
                    held += 1
            except BaseException:
                self._release(held)
                raise

    def release(self, *, alone: bool = False) -> None:
        """Release what ``acquire`` with the same argument took."""
        self._release(self._number if alone else 1)

    def _release(self, count: int) -> None:
        for _ in range(count):
            self._free.release()
