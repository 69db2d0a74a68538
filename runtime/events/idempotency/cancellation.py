"""Begins an idempotency record so that a cancellation during the call releases the lease."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from runtime.events.idempotency.records import RecordsUnavailable

T = TypeVar("T")


async def begin_or_release(begin: Coroutine[Any, Any, T], release: Callable[[], Awaitable[None]]) -> T:
    """Return the result of ``begin``; if the caller is cancelled meanwhile, wait for it and release the lease."""
    task = asyncio.create_task(begin)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if task.exception() is None:
            with suppress(RecordsUnavailable):  # the lease expires by itself
                await release()
        raise
