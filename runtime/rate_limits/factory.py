"""Opens the rate limits that the settings ask for."""

from __future__ import annotations

from runtime.rate_limits.gcra import WINDOW_SECONDS, UsageLimiter
from runtime.settings import Settings


def open_limits(settings: Settings) -> UsageLimiter:
    """Where the settings say that what clients used is kept.

    Raises:
        SettingsError: ``REDIS_URL`` is no such thing.
    """
    if settings.rate_limit_store == "redis":
        from runtime.rate_limits.redis import RedisLimits  # the client's import is a tenth of a second
        from runtime.storage.redis import SharedRedis

        hold_seconds = settings.request_timeout_seconds + WINDOW_SECONDS
        return RedisLimits(SharedRedis(settings.redis_url.get_secret_value()), hold_seconds)
    from runtime.rate_limits.memory import MemoryLimits  # which needs this file

    return MemoryLimits(settings.rate_limit_clients)
