"""A clock for tests, which stands still until a test sets it."""

from __future__ import annotations


class Clock:
    """A clock that a test sets; it serves as a wall clock and as a monotonic one.

    Args:
        now: the time in seconds that it shows first.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now
