"""The interface of the response cache's stores, which is small and synchronous, and the types it uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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


class Store(Protocol):
    """A key-value store with a size limit: it evicts the least recently used entries and expires old ones.

    Every method may be called from any thread and may raise ``StoreFailed``. After a failed ``put`` the key has its old
    value, the new one or none, never a mixture.
    """

    name: str
    blocking: bool
    """Whether calls wait for a disk or a network, and so must not run on the event loop."""
    counters: StoreCounters

    def get(self, key: str) -> bytes | None:
        """Return a value that has not expired, and mark it as most recently used."""
        ...

    def put(self, key: str, model: str, value: bytes) -> None:
        """Store a value in place of the key's old one. A value that exceeds the limit by itself is not stored.

        Args:
            key: the entry's key, lower-case hexadecimal digits.
            model: the model's id, by which ``remove`` selects entries.
            value: the bytes to store.
        """
        ...

    def remove(self, *, model: str | None = None, prefix: str = "") -> int:
        """Remove the values of a model (None: of all models) whose key starts with the prefix.

        Returns:
            The number of values removed.
        """
        ...

    def size(self) -> Size:
        """Return the number of entries and their bytes."""
        ...

    def close(self) -> None:
        """Close files and connections. Entries of a store that outlives the process are not removed."""
        ...


def cost(value: bytes) -> int:
    """Return the bytes that a value counts against the limit."""
    return len(value) + OVERHEAD
