"""Kept answers in the process's own memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from runtime.response_cache.store import Size, StoreCounters, cost


class MemoryStore:
    """See ``runtime.response_cache.store.Store``.

    Args:
        limit_bytes: what all entries may cost together.
        ttl_seconds: how long an entry is good for.
        clock: Unix time in seconds.
    """

    name = "memory"
    blocking = False

    def __init__(self, limit_bytes: int, ttl_seconds: float, clock: Callable[[], float]) -> None:
        self.tally = StoreCounters()
        self._limit = limit_bytes
        self._ttl = ttl_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[bytes, str]] = OrderedDict()  # value and model, least recently used first
        self._created: dict[str, float] = {}  # oldest first
        self._bytes = 0

    def get(self, key: str) -> bytes | None:
        """See ``Store``."""
        with self._lock:
            self._expire()
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: str, model: str, value: bytes) -> None:
        """See ``Store``."""
        if cost(value) > self._limit:
            return
        with self._lock:
            self._expire()
            if key in self._entries:
                self._drop(key)
            self._entries[key] = value, model
            self._created[key] = self._clock()
            self._bytes += cost(value)
            while self._bytes > self._limit:
                self._drop(next(iter(self._entries)))
                self.tally.evictions += 1

    def remove(self, *, model: str | None = None, prefix: str = "") -> int:
        """See ``Store``."""
        with self._lock:
            self._expire()
            gone = [
                key
                for key, (_, owner) in self._entries.items()
                if key.startswith(prefix) and (model is None or owner == model)
            ]
            for key in gone:
                self._drop(key)
            return len(gone)

    def size(self) -> Size:
        """See ``Store``."""
        with self._lock:
            self._expire()
            return Size(len(self._entries), self._bytes)

    def close(self) -> None:
        """See ``Store``."""
        with self._lock:
            self._entries.clear()
            self._created.clear()
            self._bytes = 0

    def _expire(self) -> None:
        oldest = self._clock() - self._ttl
        while self._created and self._created[key := next(iter(self._created))] <= oldest:
            self._drop(key)
            self.tally.expired += 1

    def _drop(self, key: str) -> None:
        value, _ = self._entries.pop(key)
        del self._created[key]
        self._bytes -= cost(value)
