"""Where it is kept which events are done; see ``runtime.events.idempotency.records``."""

from __future__ import annotations

from runtime.events.idempotency.records import Records
from runtime.settings import Settings


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
