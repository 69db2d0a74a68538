"""Stores used quotas in this process's memory, for a bounded number of clients."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from runtime.rate_limits.gcra import Commit, Decision, Quota, take


class MemoryLimiter:
    """Stores the levels and reservations of one kind of quota. For use from one thread, or one event loop.

    Args:
        clients: the largest number of names stored; the least recently used is evicted first. Reservations are kept.
        clock: monotonic time in seconds.
    """

    def __init__(self, clients: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clients = clients
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # name -> level, and the time it was stored
        self._reserved: dict[str, int] = {}

    def take(self, name: str, quota: Quota, cost: int = 1) -> Decision:
        """Request units for a name, see ``runtime.rate_limits.gcra.take``; a cost of 0 only reads the state."""
        known, reserved = self._levels.get(name), self._reserved.get(name, 0)
        if known is None and not cost and not reserved:  # nothing used: the whole burst is available
            return Decision(True, quota.burst, 0.0)
        now = self._clock()
        level, at = known or (0.0, now)
        level, decision = take(level, now - at, quota, cost, reserved)
        self._store(name, level, now)
        return decision

    def reserve(self, name: str, quota: Quota, units: int) -> Decision:
        """Reserve units until ``commit``, if they are available."""
        now = self._clock()
        level, at = self._levels.get(name, (0.0, now))
        reserved = self._reserved.get(name, 0)
        _, decision = take(level, now - at, quota, units, reserved)
        if decision.admitted and units:
            self._reserved[name] = reserved + units
        return decision

    def commit(self, name: str, quota: Quota, reserved: int, used: int) -> Decision:
        """Commit the units used, at most those reserved, in place of the reservation.

        Args:
            name: the client's id.
            quota: the quota.
            reserved: the units that were reserved.
            used: the units that were used.
        """
        remaining = self._reserved.pop(name, 0) - reserved
        if remaining > 0:
            self._reserved[name] = remaining
        now = self._clock()
        level, at = self._levels.get(name, (0.0, now))
        level, _ = take(level, now - at, quota, 0)
        self._store(name, level + min(max(used, 0), reserved), now)
        return self.take(name, quota, 0)

    def _store(self, name: str, level: float, now: float) -> None:
        if level > 0:
            levels = self._levels
            levels[name] = level, now
            levels.move_to_end(name)
            if len(levels) > self._clients:
                levels.popitem(last=False)
        else:  # the same as a name that was never stored
            self._levels.pop(name, None)

    def __len__(self) -> int:
        return len(self._levels)


class MemoryLimits:
    """A ``UsageLimiter`` that stores used quotas in memory.

    Args:
        clients: the largest number of clients stored.
        clock: monotonic time in seconds.
    """

    def __init__(self, clients: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = MemoryLimiter(clients, clock)
        self._tokens = MemoryLimiter(clients, clock)

    async def admit(
        self, client: str, requests: Quota | None, tokens: Quota | None
    ) -> tuple[Decision | None, Decision | None]:
        """Count one request, and read the token quota."""
        return (
            None if requests is None else self._requests.take(client, requests),
            None if tokens is None else self._tokens.take(client, tokens, 0),
        )

    async def reserve(self, client: str, quota: Quota, tokens: int) -> tuple[Decision, Commit | None]:
        """Reserve tokens until they are committed."""
        decision = self._tokens.reserve(client, quota, tokens)

        async def commit(used: int) -> Decision:
            return self._tokens.commit(client, quota, tokens, used)

        return decision, commit if decision.admitted else None

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def __len__(self) -> int:
        return max(len(self._requests), len(self._tokens))
