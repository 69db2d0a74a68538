"""How much a client may use: quotas, and the generic cell rate algorithm (GCRA) that holds them.

GCRA (ITU-T I.371 annex A, in its form as a continuous-state leaky bucket) keeps one number per client and quota: the
level, which is the units that were used and are not paid off yet. Time pays them off at an even pace, one each
``interval`` seconds; a request is admitted while it does not lift the level above ``burst``.

With ``interval = window / (limit - burst)`` no window, wherever it begins, ever sees more than ``limit`` units: at most
``burst`` at its start, and ``limit - burst`` at the even pace after it.

What something costs may be known only when it is over, as with generated tokens. Then the most that it can cost is held
first, and later what it did cost is charged in place of that. Held units are not paid off by time, or else giving them
back would give twice what the pace gives once: level and held units together never exceed the burst. So no window sees
more than ``limit`` whenever between the two moments a unit is thought to be used.

The level is kept, and not the theoretical arrival time that the same algorithm is often told with, because that is a
sum of a clock's large reading and a unit's tiny time, from which the last digits are lost at every step.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

WINDOW_SECONDS = 60.0
_ROUNDING = 1e-6  # units: must not turn away the last one, and does not let one more through, because units are whole


@dataclass(frozen=True, slots=True)
class Quota:
    """At most ``limit`` units in any ``window`` seconds, ``burst`` of them at once.

    Raises:
        ValueError: it does not hold that 1 <= burst < limit. (A limit of 1 has a burst of 1.)
    """

    limit: int
    burst: int
    window: float = WINDOW_SECONDS
    interval: float = field(init=False)
    """Seconds in which one unit is paid off."""

    def __post_init__(self) -> None:
        if not 1 <= self.burst <= max(1, self.limit - 1) or self.limit < 1:
            raise ValueError(f"a quota's burst is at least 1 and less than its limit of {self.limit}, not {self.burst}")
        object.__setattr__(self, "interval", self.window / max(1, self.limit - self.burst))

    @classmethod
    def share(cls, limit: int, share: float, window: float = WINDOW_SECONDS) -> Quota:
        """A quota of which a share may be used at once."""
        return cls(limit, min(max(1, limit - 1), max(1, math.floor(limit * share))), window)


class Decision(NamedTuple):
    """What became of a request for units.

    Args:
        admitted: whether it may go on; if not, nothing was charged.
        remaining: units that could be had at once now.
        reset: seconds until the whole burst is there again, but for what is held.
        retry_after: seconds until so many units could be had; 0 if admitted, infinite if they never can. Where others'
            held units are in the way, nobody knows when those end: then the seconds after which only they are.
    """

    admitted: bool
    remaining: int
    reset: float
    retry_after: float = 0.0


Settle = Callable[[int], Awaitable[Decision | None]]
"""Charges the units that were used in place of those held; to be called once. Answers what there is now, if known."""


class LimitsUnavailable(Exception):
    """What clients have used cannot be looked up now."""


class UsageLimiter(Protocol):
    """What clients have used of their quotas, wherever that is kept."""

    async def admit(
        self, client: str, requests: Quota | None, tokens: Quota | None
    ) -> tuple[Decision | None, Decision | None]:
        """Charge one request, and look at the tokens.

        Raises:
            LimitsAway: see there; nobody knows whether it was charged.
        """
        ...

    async def hold(self, client: str, quota: Quota, tokens: int) -> tuple[Decision, Settle | None]:
        """Hold tokens until their settlement; there is none if they are not admitted.

        Raises:
            LimitsAway: see there. A settlement never raises it.
        """
        ...

    async def close(self) -> None:
        """Let go of whatever there is to let go of."""
        ...

    def __len__(self) -> int:
        """Clients remembered in this process."""
        ...


def take(level: float, elapsed: float, quota: Quota, cost: int = 1, held: int = 0) -> tuple[float, Decision]:
    """One step of the algorithm.

    Args:
        level: units that were not paid off yet at the last step; 0 if there was none.
        elapsed: seconds since then, by a monotonic clock.
        quota: what holds.
        cost: units asked for; 0 only looks.
        held: units that are held.

    Returns:
        The level now, and what became of it.
    """
    interval, burst = quota.interval, quota.burst
    level -= elapsed / interval
    if level < 0.0:  # max() takes three times as long, and this is done twice for each request
        level = 0.0
    room = burst - held - level
    if cost > 0 and cost > room + _ROUNDING:
        retry_after = math.inf if cost > burst else min(cost - room, level) * interval
        return level, Decision(False, max(0, int(room + _ROUNDING)), level * interval, retry_after)
    level += cost
    remaining = int(room - cost + _ROUNDING)
    return level, Decision(True, remaining if remaining > 0 else 0, level * interval)
