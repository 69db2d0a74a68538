"""Cached responses in this process's memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from runtime.response_cache.store import Size, Store, cost


class MemoryStore(Store):
    """A ``Store`` in this process's memory. Arguments as for ``Store``."""

    name = "memory"
    blocking = False

    def __init__(self, limit_bytes: int, ttl_seconds: float, clock: Callable[[], float]) -> None:
        super().__init__(limit_bytes, ttl_seconds, clock)
        self._entries: OrderedDict[str, tuple[bytes, str]] = OrderedDict()  # value and model, least recently used first
        self._created: dict[str, float] = {}  # oldest first
        self._bytes = 0

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values that have not expired, and mark them as most recently used."""
        with self._lock:
            self._expire()
            for key in keys:
                if key in self._entries:
                    self._entries.move_to_end(key)
            return [self._entries[key][0] if key in self._entries else None for key in keys]

    def put_many(self, model: str, values: Mapping[str, bytes]) -> None:
        """Store values, and evict the least recently used ones that have no room."""
        with self._lock:
            self._expire()
            for key, value in values.items():
                if cost(value) <= self._limit:
                    self._put(key, model, value)

    def _put(self, key: str, model: str, value: bytes) -> None:
        if key in self._entries:
            self._drop(key)
        self._entries[key] = value, model
        self._created[key] = self._clock()
        self._bytes += cost(value)
        while self._bytes > self._limit:
            self._drop(next(iter(self._entries)))
            self.counters.evictions += 1

    def remove(self, *, model: str | None = None, prefix: str = "") -> int:
        """Remove the values that match, and return how many there were."""
        with self._lock:
            self._expire()
            matches = [
                key
                for key, (_, owner) in self._entries.items()
                if key.startswith(prefix) and (model is None or owner == model)
            ]
            for key in matches:
                self._drop(key)
            return len(matches)

    def size(self) -> Size:
        """Return the number of entries and their bytes."""
        with self._lock:
            self._expire()
            return Size(len(self._entries), self._bytes)

    def close(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._entries.clear()
            self._created.clear()
            self._bytes = 0

    def _expire(self) -> None:
        oldest = self._clock() - self._ttl
        while self._created and self._created[key := next(iter(self._created))] <= oldest:
            self._drop(key)
            self.counters.expired += 1

    def _drop(self, key: str) -> None:
        value, _ = self._entries.pop(key)
        del self._created[key]
        self._bytes -= cost(value)
