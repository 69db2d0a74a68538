"""Beginning a record of work so that a cancellation in the middle releases it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from runtime.events.idempotency.records import RecordsUnavailable

T = TypeVar("T")


async def begin_or_release(begin: Coroutine[Any, Any, T], release: Callable[[], Awaitable[None]]) -> T:
    """What ``begin`` answers. If the caller is cancelled meanwhile, whatever was begun is given back."""
    task = asyncio.create_task(begin)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if task.exception() is None:
            with suppress(RecordsUnavailable):  # it lapses by itself
                await release()
        raise
