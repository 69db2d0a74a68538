"""An idempotency store in the process's memory, which recognizes only redeliveries to the same process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from runtime.events.idempotency import transitions as transitions
from runtime.events.idempotency.records import Done, InProgress, Mismatch, RecordsUnavailable, Started
from runtime.events.idempotency.transitions import WorkRecord


class MemoryRecords:
    """An idempotency store (``Records``) in memory, for one event loop.

    When it is full, it evicts results, the oldest first, and then records with an expired lease. Records in progress
    are never evicted: if they alone fill the store, no more can be begun.

    Args:
        max_records: the maximum number of records.
        max_bytes: the maximum size of all results together. A single result that is larger is not cached.
        clock: returns monotonic time in seconds.
    """

    def __init__(
        self, max_records: int = 100_000, max_bytes: int = 64 * 2**20, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._clock = clock
        # Oldest first. A record that expires before an older one is removed only after it.
        self._running: OrderedDict[str, WorkRecord] = OrderedDict()
        self._done: OrderedDict[str, WorkRecord] = OrderedDict()
        self._bytes = 0

    async def begin(
        self, key: str, fingerprint: str, holder: str, seconds: float
    ) -> Started | Done | InProgress | Mismatch:
        """Lease a record if no other worker has the lease (``Records.begin``)."""
        now, old = self._look_up(key)
        if old is None:
            self._evict(now)
        new, answer = transitions.begin(old, fingerprint, holder, seconds, now)
        self._replace(key, old, new)
        return answer

    async def renew(self, key: str, holder: str, seconds: float) -> bool:
        """Extend the lease, and return whether it still was the holder's (``Records.renew``)."""
        now, old = self._look_up(key)
        new, answer = transitions.renew(old, holder, seconds, now)
        self._replace(key, old, new)
        return answer

    async def complete(self, key: str, holder: str, result: bytes, seconds: float) -> bool:
        """Store the result, and return whether the record still was the holder's (``Records.complete``)."""
        now, old = self._look_up(key)
        new, answer = transitions.complete(old, holder, result, seconds, now)
        self._replace(key, old, new)
        while self._bytes > self._max_bytes:
            self._remove(next(iter(self._done)))
        return answer

    async def release(self, key: str, holder: str) -> None:
        """Release the lease without a result (``Records.release``)."""
        now, old = self._look_up(key)
        new, _ = transitions.release(old, holder, now)
        self._replace(key, old, new)

    async def close(self) -> None:
        """Remove all records."""
        self._running.clear()
        self._done.clear()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._running) + len(self._done)

    def _look_up(self, key: str) -> tuple[float, WorkRecord | None]:
        now = self._clock()
        for records in (self._running, self._done):
            while records and records[oldest := next(iter(records))].forget <= now:
                self._remove(oldest)
        old = self._running.get(key) or self._done.get(key)
        if old is not None and old.forget <= now:
            self._remove(key)
            return now, None
        return now, old

    def _evict(self, now: float) -> None:
        if len(self) < self._max_records:
            return
        if self._done:
            self._remove(next(iter(self._done)))
            return
        lapsed = next((key for key, old in self._running.items() if old.until <= now), None)
        if lapsed is None:
            raise RecordsUnavailable(f"the store is full: {self._max_records} events are in progress")
        self._remove(lapsed)

    def _replace(self, key: str, old: WorkRecord | None, new: WorkRecord | None) -> None:
        if new is old:
            return
        if old is not None:
            self._remove(key)
        if new is not None:
            (self._running if new.result is None else self._done)[key] = new
            self._bytes += len(new.result or b"")

    def _remove(self, key: str) -> None:
        removed = self._running.pop(key, None) or self._done.pop(key)
        self._bytes -= len(removed.result or b"")
