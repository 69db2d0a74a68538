"""Where kept answers lie: one small synchronous interface, and who implements it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

OVERHEAD = 256
"""Bytes that an entry takes up beside its value, roughly: its key, its model's name, and its places in the indexes."""


class StoreFailed(Exception):
    """The store cannot be reached, read or written now. The message is for the log."""


@dataclass(slots=True)
class StoreCounters:
    """What a store has done by itself, in this process.

    Args:
        evictions: entries dropped for want of room.
        expired: entries dropped for their age.
        damaged: times the store was found damaged, and begun anew.
    """

    evictions: int = 0
    expired: int = 0
    damaged: int = 0


@dataclass(frozen=True, slots=True)
class Size:
    """Entries held, and their bytes as ``cost`` counts them."""

    entries: int
    bytes: int


class Store(Protocol):
    """Values by key, bounded by bytes: least recently used ones go first, old ones go by themselves.

    Every method may be called from any thread and may raise ``StoreFailed``. What a ``put`` that failed leaves is the
    old value, the new one or none, never a mixture.
    """

    name: str
    blocking: bool
    """Whether its calls wait for a disk or a network, and so must stay off the event loop."""
    tally: StoreCounters

    def get(self, key: str) -> bytes | None:
        """A value that is not too old; it is the most recently used one from now on."""
        ...

    def put(self, key: str, model: str, value: bytes) -> None:
        """Keep a value, in place of the key's old one. A value that has no room even alone is not kept.

        Args:
            key: lower-case hexadecimal digits.
            model: what ``remove`` knows it by.
        """
        ...

    def remove(self, *, model: str | None = None, prefix: str = "") -> int:
        """Drop the values of a model (None: of all) whose key begins so.

        Returns:
            How many there were.
        """
        ...

    def size(self) -> Size:
        """What it holds."""
        ...

    def close(self) -> None:
        """Let go of files and connections. What is kept stays, where the store outlives the process."""
        ...


def cost(value: bytes) -> int:
    """Bytes that a value counts for."""
    return len(value) + OVERHEAD
