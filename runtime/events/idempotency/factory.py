"""Opens the idempotency store that the settings name."""

from __future__ import annotations

from runtime.events.idempotency.records import Records
from runtime.settings import Settings


def open_records(settings: Settings) -> Records | None:
    """Create the store that ``IDEMPOTENCY`` names; None for ``off``. Nothing is opened before the first use.

    Raises:
        SettingsError: ``REDIS_URL`` is invalid.
    """
    if settings.idempotency == "off":
        return None
    if settings.idempotency == "sqlite":
        from runtime.events.idempotency.sqlite import SqliteRecords

        return SqliteRecords(settings.cache_dir / "events.sqlite")
    if settings.idempotency == "redis":
        from runtime.events.idempotency.redis import RedisRecords  # importing the client takes 0.1 s
        from runtime.storage.redis import SharedRedis

        return RedisRecords(SharedRedis(settings.redis_url.get_secret_value()))
    from runtime.events.idempotency.memory import MemoryRecords

    return MemoryRecords()
