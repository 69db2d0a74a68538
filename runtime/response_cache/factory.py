"""Creates the response cache's store that the settings name."""

from __future__ import annotations

from collections.abc import Callable

from runtime.response_cache.store import Store
from runtime.settings import Settings


def open_store(settings: Settings, clock: Callable[[], float]) -> Store:
    """Create the store that ``RESPONSE_CACHE`` names. It opens no file and no connection before its first use.

    Args:
        settings: the service's settings.
        clock: returns Unix time in seconds.

    Raises:
        SettingsError: ``REDIS_URL`` is not a valid Redis URL.
    """
    limit, ttl = settings.response_cache_bytes, settings.response_cache_ttl_seconds
    if settings.response_cache == "sqlite":
        from runtime.response_cache.sqlite import SqliteStore

        return SqliteStore(settings.cache_dir / "responses.sqlite", limit, ttl, clock)
    if settings.response_cache == "redis":
        from runtime.response_cache.redis import RedisStore  # importing the client takes 0.1 s

        return RedisStore(settings.redis_url.get_secret_value(), limit, ttl, clock)
    from runtime.response_cache.memory import MemoryStore

    return MemoryStore(limit, ttl, clock)
