"""Shares a process's cores between models that generate and encoders, so that texts stream on while others are encoded.

A step of the kernels uses all cores, so steps of two models at once would slow each other down by more than that. An
encoder's work is cut into slices (a layer of a step), of which one at a time runs between two steps of a model that
generates. Steps of models that generate run when they come, side by side as without encoders.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SHARE = 0.2  # time for encoders, for each second in which models generate
_IDLE_SECONDS = 0.03  # without a step, after which no model generates; between two steps are a few milliseconds
_MOST_DEBT = 0.1  # seconds


class CoreShare:
    """The turns of the models of a process. Thread-safe.

    Args:
        clock: returns monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._generating = 0  # steps under way
        self._encoding = False
        self._waiting = 0  # encoders
        self._credit = 0.0  # seconds that encoders may use before the next step; less than 0 after a long slice
        self._last = float("-inf")  # time at which the last step ended
        self._step_seconds = 0.0  # moving average

    @property
    def slice_seconds(self) -> float | None:
        """How long a slice of an encoder should be now; None for any length, as no model generates."""
        with self._changed:
            return _SHARE * self._step_seconds if self._busy() else None

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Run a step of a model that generates in the block, after at most one slice of an encoder."""
        with self._changed:
            while self._encoding or (self._waiting and self._credit > 0 and not self._generating and self._busy()):
                self._changed.wait(_IDLE_SECONDS)
            self._generating += 1
            started = self._clock()
        try:
            yield
        finally:
            with self._changed:
                self._generating -= 1
                self._last = self._clock()
                seconds = self._last - started
                self._step_seconds += (0.2 if self._step_seconds else 1) * (seconds - self._step_seconds)
                self._credit = min(self._credit + _SHARE * seconds, 2 * _SHARE * self._step_seconds)
                self._changed.notify_all()

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Run a slice of an encoder's step in the block, when it is its turn."""
        with self._changed:
            self._waiting += 1
            while self._encoding or self._generating or (self._busy() and self._credit <= 0):
                self._changed.wait(_IDLE_SECONDS)
            self._waiting -= 1
            self._encoding = True
            started = self._clock()
        try:
            yield
        finally:
            with self._changed:
                self._encoding = False
                self._credit = max(self._credit - (self._clock() - started), -_MOST_DEBT)
                self._changed.notify_all()

    def _busy(self) -> bool:
        """Whether a model generates: a step runs, or has ended just now."""
        return bool(self._generating) or self._clock() - self._last < _IDLE_SECONDS
