"""The base class of the response cache's stores, whose interface is small and synchronous, and the types it uses."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

OVERHEAD = 256
"""Approximate bytes of an entry apart from its value: its key, its model's name and its index entries."""


class StoreFailed(Exception):
    """The store cannot be reached, read or written now. The message is for the log."""


@dataclass(slots=True)
class StoreCounters:
    """What a store did on its own, in this process.

    Args:
        evictions: the number of entries removed to stay within the size limit.
        expired: the number of entries removed because of their age.
        damaged: how often the store was found damaged and was created anew.
    """

    evictions: int = 0
    expired: int = 0
    damaged: int = 0


@dataclass(frozen=True, slots=True)
class Size:
    """The number of entries and their bytes as ``cost`` counts them."""

    entries: int
    bytes: int


class Store(ABC):
    """A key-value store with a size limit: it evicts the least recently used entries and expires old ones.

    Every method may be called from any thread and may raise ``StoreFailed``. After a failed ``put`` or ``put_many``
    each key has its old value, the new one or none, never a mixture. ``get_many`` and ``put_many`` take one round trip
    or transaction, however many keys there are.

    Args:
        limit_bytes: the total cost limit of all entries, in bytes as ``cost`` counts them.
        ttl_seconds: the lifetime of an entry.
        clock: returns Unix time in seconds.
    """

    name: str
    blocking: bool
    """Whether calls wait for a disk or a network, and so must not run on the event loop."""

    def __init__(self, limit_bytes: int, ttl_seconds: float, clock: Callable[[], float]) -> None:
        self.counters = StoreCounters()
        self._limit = limit_bytes
        self._ttl = ttl_seconds
        self._clock = clock
        self._lock = threading.Lock()  # guards the counters

    def get(self, key: str) -> bytes | None:
        """Return a value that has not expired, and mark it as most recently used."""
        return self.get_many([key])[0]

    def put(self, key: str, model: str, value: bytes) -> None:
        """Store a value, see ``put_many``."""
        self.put_many(model, {key: value})

    def _count(self, *, expired: int = 0, evicted: int = 0) -> None:
        with self._lock:
            self.counters.expired += expired
            self.counters.evictions += evicted

    @abstractmethod
    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of keys, None for those that have expired, and mark them as used in the order of the keys.

        Args:
            keys: the keys, all different.
        """

    @abstractmethod
    def put_many(self, model: str, values: Mapping[str, bytes]) -> None:
        """Store values in place of the keys' old ones, in order, each evicting the least recently used ones for which
        there is no room. A value that exceeds the limit by itself is not stored.

        Args:
            model: the model's id, by which ``remove`` selects entries.
            values: the bytes to store, by their keys, lower-case hexadecimal digits.
        """

    @abstractmethod
    def remove(self, *, model: str | None = None, prefix: str = "") -> int:
        """Remove the values of a model (None: of all models) whose key starts with the prefix.

        Returns:
            The number of values removed.
        """

    @abstractmethod
    def size(self) -> Size:
        """Return the number of entries and their bytes."""

    @abstractmethod
    def close(self) -> None:
        """Close files and connections. Entries of a store that outlives the process are not removed."""


def cost(value: bytes) -> int:
    """Return the bytes that a value counts against the limit."""
    return len(value) + OVERHEAD
