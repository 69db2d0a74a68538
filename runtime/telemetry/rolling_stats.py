"""What one model does now and has done: counts, and windows that slide. Read by ``/stats`` and ``/metrics``.

All of it is kept by hand behind one lock, because a token has no time for more: a few additions, and no object made.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import Literal

from runtime.types import ModelFigures, Percentiles

GAP_BOUNDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
"""Upper bounds, in seconds, of the groups that times between two tokens are counted in."""

_RATE_SECONDS = 10
_RECENT_REQUESTS = 256
_RECENT_SECONDS = 300.0


class RollingStats:
    """See the module. Thread-safe.

    Args:
        clock: monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._busy = (0, 0, 0, 0.0)
        self._ended = {"finished": 0, "failed": 0, "cancelled": 0, "rejected": 0}
        self._prompt_tokens = self._cached_tokens = 0
        self._tokens = 0
        self._gaps = [0] * (len(GAP_BOUNDS) + 1)
        self._gap_seconds = 0.0
        self._second = 0  # the second that tokens are counted in
        self._in_second = 0
        self._seconds: deque[tuple[int, int]] = deque(maxlen=_RATE_SECONDS + 1)  # those before it that had tokens
        self._first_tokens = _Recent()
        self._paces = _Recent()

    def busy(self, running: int, waiting: int, queued: int, kv_usage: float) -> None:
        """What the engine has to do now; see ``ModelFigures``."""
        self._busy = (running, waiting, queued, kv_usage)

    def prompt(self, tokens: int, cached: int) -> None:
        """A prompt was read; so many of its tokens were in the prefix cache."""
        with self._lock:
            self._prompt_tokens += tokens
            self._cached_tokens += cached

    def token(self, now: float, gap: float | None) -> None:
        """A token was handed out.

        Args:
            now: monotonic time at which it was there.
            gap: seconds since the one before it; None for a sequence's first.
        """
        second = int(now)
        with self._lock:
            if second > self._second:
                self._seconds.append((self._second, self._in_second))
                self._second, self._in_second = second, 0
            self._in_second += 1
            self._tokens += 1
            if gap is not None:
                self._gaps[bisect_left(GAP_BOUNDS, gap)] += 1
                self._gap_seconds += gap

    def first_token(self, seconds: float) -> None:
        """A request got its first token so long after its arrival."""
        with self._lock:
            self._first_tokens.add(self._clock(), seconds)

    def pace(self, gap: float) -> None:
        """A request is over; so many seconds lay between two of its tokens on average."""
        with self._lock:
            self._paces.add(self._clock(), gap)

    def ended(self, how: Literal["finished", "failed", "cancelled", "rejected"]) -> None:
        """A request is over, or was not admitted."""
        with self._lock:
            self._ended[how] += 1

    def read(self) -> ModelFigures:
        """The figures as they are now."""
        running, waiting, queued, kv_usage = self._busy
        with self._lock:
            now = self._clock()
            return ModelFigures(
                running=running,
                waiting=waiting,
                queued=queued,
                kv_usage=kv_usage,
                **self._ended,
                prompt_tokens=self._prompt_tokens,
                cached_tokens=self._cached_tokens,
                generated_tokens=self._tokens,
                tokens_per_second=self._rate(now),
                time_to_first_token=self._first_tokens.spread(now),
                inter_token_latency=self._paces.spread(now),
            )

    def gaps(self) -> tuple[list[int], float]:
        """How many times between two tokens fell into each group of ``GAP_BOUNDS`` and above, and their sum."""
        with self._lock:
            return self._gaps.copy(), self._gap_seconds

    def _rate(self, now: float) -> float:
        """Over the last ten whole seconds and the one that is under way."""
        second = int(now)
        counts = [*self._seconds, (self._second, self._in_second)]
        recent = sum(count for at, count in counts if at >= second - _RATE_SECONDS)
        return recent / (_RATE_SECONDS + now - second)


class _Recent:
    """The last figures of a kind, for their spread."""

    def __init__(self) -> None:
        self._items: deque[tuple[float, float]] = deque(maxlen=_RECENT_REQUESTS)

    def add(self, now: float, value: float) -> None:
        self._items.append((now, value))

    def spread(self, now: float) -> Percentiles | None:
        """Nearest ranks; None if nothing is recent."""
        values = sorted(value for at, value in self._items if now - at <= _RECENT_SECONDS)
        if not values:
            return None
        return Percentiles(values[(len(values) - 1) // 2], values[-(-len(values) * 19 // 20) - 1])
