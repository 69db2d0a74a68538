"""An idempotency store in the process's memory, which recognizes only redeliveries to the same process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from runtime.events.idempotency import transitions as record
from runtime.events.idempotency.records import Done, InProgress, Mismatch, RecordsUnavailable, Started
from runtime.events.idempotency.transitions import WorkRecord


class MemoryRecords:
    """An idempotency store (``Records``) in memory, for one event loop.

    When it is full, it evicts results, the oldest first, and then records with an expired lease. Records in progress
    are never evicted: if they alone fill the store, no more can be begun.

    Args:
        most: the maximum number of records.
        most_bytes: the maximum size of all results together. A single result that is larger is not cached.
        clock: returns monotonic time in seconds.
    """

    def __init__(
        self, most: int = 100_000, most_bytes: int = 64 * 2**20, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._clock = clock
        # Oldest first. A record that expires before an older one is removed only after it.
        self._running: OrderedDict[str, WorkRecord] = OrderedDict()
        self._done: OrderedDict[str, WorkRecord] = OrderedDict()
        self._bytes = 0

    async def begin(
        self, key: str, fingerprint: str, holder: str, seconds: float
    ) -> Started | Done | InProgress | Mismatch:
        """Lease a record if no other worker has the lease (``Records.begin``)."""
        now, found = self._find(key)
        if found is None:
            self._make_room(now)
        left, answer = record.begin(found, fingerprint, holder, seconds, now)
        self._keep(key, found, left)
        return answer

    async def renew(self, key: str, holder: str, seconds: float) -> bool:
        """Extend the lease, and return whether it still was the holder's (``Records.renew``)."""
        now, found = self._find(key)
        left, answer = record.renew(found, holder, seconds, now)
        self._keep(key, found, left)
        return answer

    async def complete(self, key: str, holder: str, result: bytes, seconds: float) -> bool:
        """Store the result, and return whether the record still was the holder's (``Records.complete``)."""
        now, found = self._find(key)
        left, answer = record.complete(found, holder, result, seconds, now)
        self._keep(key, found, left)
        while self._bytes > self._most_bytes:
            self._drop(next(iter(self._done)))
        return answer

    async def release(self, key: str, holder: str) -> None:
        """Release the lease without a result (``Records.release``)."""
        now, found = self._find(key)
        left, _ = record.release(found, holder, now)
        self._keep(key, found, left)

    async def close(self) -> None:
        """Remove all records."""
        self._running.clear()
        self._done.clear()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._running) + len(self._done)

    def _find(self, key: str) -> tuple[float, WorkRecord | None]:
        now = self._clock()
        for records in (self._running, self._done):
            while records and records[oldest := next(iter(records))].forget <= now:
                self._drop(oldest)
        found = self._running.get(key) or self._done.get(key)
        if found is not None and found.forget <= now:
            self._drop(key)
            return now, None
        return now, found

    def _make_room(self, now: float) -> None:
        if len(self) < self._most:
            return
        if self._done:
            self._drop(next(iter(self._done)))
            return
        lapsed = next((key for key, found in self._running.items() if found.until <= now), None)
        if lapsed is None:
            raise RecordsUnavailable(f"{self._most} events are being worked on, and no more are remembered")
        self._drop(lapsed)

    def _keep(self, key: str, found: WorkRecord | None, left: WorkRecord | None) -> None:
        if left is found:
            return
        if found is not None:
            self._drop(key)
        if left is not None:
            (self._running if left.result is None else self._done)[key] = left
            self._bytes += len(left.result or b"")

    def _drop(self, key: str) -> None:
        gone = self._running.pop(key, None) or self._done.pop(key)
        self._bytes -= len(gone.result or b"")
