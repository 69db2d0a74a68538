"""Computes how long to pause after a failure, for retries and for services that do not answer."""

from __future__ import annotations

import time
from collections.abc import Callable

_MAX_DOUBLINGS = 30


def full_jitter(failures: int, first_seconds: float, max_seconds: float, draw: Callable[[], float]) -> float:
    """Return the pause before the next attempt in seconds: exponential backoff with full jitter.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015.

    Args:
        failures: the number of failed attempts so far, from 1.
        first_seconds: the maximum pause after the first failure; it doubles with each further one.
        max_seconds: the upper bound of the maximum.
        draw: returns a uniformly distributed random number from 0 to 1.
    """
    return draw() * min(max_seconds, first_seconds * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))


class FailurePause:
    """Tells for a short time after a failed call that the next one should fail at once, without being tried.

    Otherwise each of many callers would wait for the whole timeout of a service that does not answer.

    Args:
        seconds: the pause's length in seconds.
        clock: returns monotonic time in seconds.
    """

    def __init__(self, seconds: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._until = float("-inf")

    def start(self) -> None:
        """Start the pause, or start it anew; to be called after each failure."""
        self._until = self._clock() + self._seconds

    @property
    def active(self) -> bool:
        """Whether the last failure is so recent that a call should fail at once."""
        return self._clock() < self._until
