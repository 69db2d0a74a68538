"""Creates the rate limit store that the settings select."""

from __future__ import annotations

from runtime.rate_limits.gcra import WINDOW_SECONDS, UsageLimiter
from runtime.settings import Settings


def open_limits(settings: Settings) -> UsageLimiter:
    """Create the store of used quotas that RATE_LIMIT_STORE selects: memory or Redis.

    Raises:
        SettingsError: ``REDIS_URL`` is invalid.
    """
    if settings.rate_limit_store == "redis":
        from runtime.rate_limits.redis import RedisLimits  # importing the client takes 0.1 s
        from runtime.storage.redis import SharedRedis

        reservation_seconds = settings.request_timeout_seconds + WINDOW_SECONDS
        return RedisLimits(SharedRedis(settings.redis_url.get_secret_value()), reservation_seconds)
    from runtime.rate_limits.memory import MemoryLimits

    return MemoryLimits(settings.rate_limit_clients)
