"""Quotas, the generic cell rate algorithm (GCRA) that enforces them, and the protocol of the stores of used quotas.

GCRA (ITU-T I.371 annex A, as a continuous-state leaky bucket) stores one number per client and quota: the level, in
units. It rises by the cost of each admitted request and drains at a constant rate, one unit every ``interval`` seconds;
a request is admitted if it does not raise the level above ``burst``.

With ``interval = window / (limit - burst)`` no window, wherever it begins, ever contains more than ``limit`` units: at
most ``burst`` at its start, and ``limit - burst`` at the constant rate after it.

The cost of an operation may be known only at its end, as with generated tokens. Then its maximum cost is reserved
first, and later its actual cost is committed in place of the reservation. Reserved units do not drain, because
releasing them would otherwise return units that had drained already: level and reserved units together never exceed the
burst. So no window contains more than ``limit``, at whatever moment between reservation and commit a unit is considered
used.

The level is stored instead of the theoretical arrival time of the usual formulation, because that is the sum of a large
clock reading and a tiny interval, which loses precision at every step.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

WINDOW_SECONDS = 60.0
_ROUNDING = 1e-6  # units: a rounding error must not refuse the last one; admits no extra, as units are whole


@dataclass(frozen=True, slots=True)
class Quota:
    """A quota: at most ``limit`` units in any ``window`` seconds, at most ``burst`` of them at once.

    Args:
        limit: the largest number of units in a window, at least 1.
        burst: the largest number of units at once.
        window: the window's length in seconds.

    Raises:
        ValueError: unless 1 <= burst < limit. (A limit of 1 has a burst of 1.)
    """

    limit: int
    burst: int
    window: float = WINDOW_SECONDS
    interval: float = field(init=False)
    """Seconds in which one unit drains."""

    def __post_init__(self) -> None:
        if not 1 <= self.burst <= max(1, self.limit - 1) or self.limit < 1:
            raise ValueError(f"a quota's burst is at least 1 and less than its limit of {self.limit}, not {self.burst}")
        object.__setattr__(self, "interval", self.window / max(1, self.limit - self.burst))

    @classmethod
    def share(cls, limit: int, share: float, window: float = WINDOW_SECONDS) -> Quota:
        """Create a quota whose burst is a share (0 to 1) of its limit, rounded down, but at least 1."""
        return cls(limit, min(max(1, limit - 1), max(1, math.floor(limit * share))), window)


class Decision(NamedTuple):
    """The result of a request for units.

    Args:
        admitted: whether the units were granted; if not, nothing was counted.
        remaining: the units that are available at once now.
        reset: seconds until the whole burst is available again, except for reserved units.
        retry_after: seconds until the requested units are available; 0 if admitted, infinite if they never can be. If
            units reserved by other requests are in the way, whose end is unknown: seconds until only those are.
    """

    admitted: bool
    remaining: int
    reset: float
    retry_after: float = 0.0


Commit = Callable[[int], Awaitable[Decision | None]]
"""Commits the units used in place of those reserved; call it once. Returns the state after it, or None if unknown."""


class LimitsUnavailable(Exception):
    """The store of used quotas is unavailable."""


class UsageLimiter(Protocol):
    """The store of the quotas that clients have used, in memory or in Redis."""

    async def admit(
        self, client: str, requests: Quota | None, tokens: Quota | None
    ) -> tuple[Decision | None, Decision | None]:
        """Count one request, and read the token quota without changing it.

        Args:
            client: the client's id.
            requests: the client's request quota; None for none.
            tokens: the client's token quota; None for none.

        Returns:
            The decisions on requests and on tokens; None for a quota that is None.

        Raises:
            LimitsUnavailable: the store is unavailable; the request may or may not have been counted.
        """
        ...

    async def reserve(self, client: str, quota: Quota, tokens: int) -> tuple[Decision, Commit | None]:
        """Reserve tokens until they are committed.

        Args:
            client: the client's id.
            quota: the client's token quota.
            tokens: the number of tokens.

        Returns:
            The decision, and the function that commits the tokens; None instead of it if they were not admitted.

        Raises:
            LimitsUnavailable: the store is unavailable. The commit function never raises it.
        """
        ...

    async def close(self) -> None:
        """Close the store."""
        ...

    def __len__(self) -> int:
        """Return the number of clients that this process stores."""
        ...


def take(level: float, elapsed: float, quota: Quota, cost: int = 1, reserved: int = 0) -> tuple[float, Decision]:
    """Do one step of the algorithm: drain the level, then add the cost if it is admitted.

    Args:
        level: the level after the last step, in units; 0 if there was none.
        elapsed: seconds since then, by a monotonic clock.
        quota: the quota.
        cost: the units requested; 0 only reads the state.
        reserved: the units that are reserved.

    Returns:
        The new level, and the decision.
    """
    interval, burst = quota.interval, quota.burst
    level -= elapsed / interval
    if level < 0.0:  # max() takes three times as long, and this is done twice for each request
        level = 0.0
    available = burst - reserved - level
    if cost > 0 and cost > available + _ROUNDING:
        retry_after = math.inf if cost > burst else min(cost - available, level) * interval
        return level, Decision(False, max(0, int(available + _ROUNDING)), level * interval, retry_after)
    level += cost
    remaining = int(available - cost + _ROUNDING)
    return level, Decision(True, remaining if remaining > 0 else 0, level * interval)
