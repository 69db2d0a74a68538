"""Where it is kept which events are done; see ``runtime.events.idempotency.records``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from runtime.events.idempotency.records import Records, RecordsAway
from runtime.settings import Settings

T = TypeVar("T")


def open_records(settings: Settings) -> Records | None:
    """What ``IDEMPOTENCY`` names, None for ``off``; nothing is opened before the first use.

    Raises:
        SettingsError: ``REDIS_URL`` is not one.
    """
    if settings.idempotency == "off":
        return None
    if settings.idempotency == "sqlite":
        from runtime.events.idempotency.sqlite import SqliteRecords

        return SqliteRecords(settings.cache_dir / "events.sqlite")
    if settings.idempotency == "redis":
        from runtime.events.idempotency.redis import RedisRecords  # the client's import is a tenth of a second
        from runtime.storage.redis import SharedRedis

        return RedisRecords(SharedRedis(settings.redis_url.get_secret_value()))
    from runtime.events.idempotency.memory import MemoryRecords

    return MemoryRecords()


async def begin_or_release(begin: Coroutine[Any, Any, T], release: Callable[[], Awaitable[None]]) -> T:
    """What ``begin`` answers. If the caller is cancelled meanwhile, whatever was begun is given back."""
    task = asyncio.create_task(begin)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if task.exception() is None:
            with suppress(RecordsAway):  # it lapses by itself
                await release()
        raise
