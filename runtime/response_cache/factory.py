"""Opens the response cache's store that the settings ask for."""

from __future__ import annotations

from collections.abc import Callable

from runtime.response_cache.store import Store
from runtime.settings import Settings


def open_store(settings: Settings, clock: Callable[[], float]) -> Store:
    """The store that ``RESPONSE_CACHE`` names; nothing is opened before the first use.

    Args:
        clock: Unix time in seconds.

    Raises:
        SettingsError: ``REDIS_URL`` is not one.
    """
    limit, ttl = settings.response_cache_bytes, settings.response_cache_ttl_seconds
    if settings.response_cache == "sqlite":
        from runtime.response_cache.sqlite import SqliteStore

        return SqliteStore(settings.cache_dir / "responses.sqlite", limit, ttl, clock)
    if settings.response_cache == "redis":
        from runtime.response_cache.redis import RedisStore  # the client's import is a tenth of a second

        return RedisStore(settings.redis_url.get_secret_value(), limit, ttl, clock)
    from runtime.response_cache.memory import MemoryStore

    return MemoryStore(limit, ttl, clock)
