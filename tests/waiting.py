"""Waiting for something to happen in another task or thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Return once it holds.

    Raises:
        AssertionError: it did not in time.
    """
    for _ in range(int(seconds * 100)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"did not happen within {seconds} s")
