"""Counters and sliding windows of one model's requests and tokens, read by ``/stats`` and ``/metrics``.

They are plain attributes behind one lock, because they change at every token: an update is a few additions and
allocates no objects.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import Literal

from runtime.status import EngineStats, Percentiles

GAP_BOUNDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
"""Upper bounds, in seconds, of the inter-token latency histogram's buckets."""

_RATE_SECONDS = 10
_RECENT_REQUESTS = 256
_RECENT_SECONDS = 300.0


class RollingStats:
    """One model's counters, rates and recent latencies. Thread-safe.

    Args:
        clock: returns monotonic time in seconds.
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
        self._second = 0  # the second whose tokens ``_in_second`` counts
        self._in_second = 0
        self._seconds: deque[tuple[int, int]] = deque(maxlen=_RATE_SECONDS + 1)  # earlier ones that had tokens
        self._first_tokens = _Recent()
        self._paces = _Recent()

    def busy(self, running: int, waiting: int, queued: int, kv_usage: float) -> None:
        """Set the engine's load: running, waiting and background requests, and the KV cache's usage (0 to 1)."""
        self._busy = (running, waiting, queued, kv_usage)

    def prompt(self, tokens: int, cached: int) -> None:
        """Count a prompt that was read: all its tokens, and how many of them were in the prefix cache."""
        with self._lock:
            self._prompt_tokens += tokens
            self._cached_tokens += cached

    def token(self, now: float, gap: float | None) -> None:
        """Count a generated token.

        Args:
            now: the monotonic time at which it was generated.
            gap: the seconds since the sequence's previous token; None for its first.
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
        """Record the seconds from a request's arrival to its first token."""
        with self._lock:
            self._first_tokens.add(self._clock(), seconds)

    def pace(self, gap: float) -> None:
        """Record the mean seconds between two tokens of a request that has ended."""
        with self._lock:
            self._paces.add(self._clock(), gap)

    def ended(self, how: Literal["finished", "failed", "cancelled", "rejected"]) -> None:
        """Count a request that has ended or was not admitted."""
        with self._lock:
            self._ended[how] += 1

    def read(self) -> EngineStats:
        """Return the current statistics."""
        running, waiting, queued, kv_usage = self._busy
        with self._lock:
            now = self._clock()
            return EngineStats(
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
        """Return the inter-token latency histogram: the count of each bucket, and the sum in seconds."""
        with self._lock:
            return self._gaps.copy(), self._gap_seconds

    def _rate(self, now: float) -> float:
        """Return tokens per second over the last ten whole seconds and the current one."""
        second = int(now)
        counts = [*self._seconds, (self._second, self._in_second)]
        recent = sum(count for at, count in counts if at >= second - _RATE_SECONDS)
        return recent / (_RATE_SECONDS + now - second)


class _Recent:
    """A window of recent values and their percentiles: the last 256 values of the last five minutes."""

    def __init__(self) -> None:
        self._items: deque[tuple[float, float]] = deque(maxlen=_RECENT_REQUESTS)

    def add(self, now: float, value: float) -> None:
        self._items.append((now, value))

    def spread(self, now: float) -> Percentiles | None:
        """Return the median and the 95th percentile by nearest rank; None if no value is recent."""
        values = sorted(value for at, value in self._items if now - at <= _RECENT_SECONDS)
        if not values:
            return None
        return Percentiles(values[(len(values) - 1) // 2], values[-(-len(values) * 19 // 20) - 1])
