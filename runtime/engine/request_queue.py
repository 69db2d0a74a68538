"""Two-level request queues: interactive ("online") requests first, background ("queued") ones without starvation."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from runtime.errors import DeadlineExceeded, ServiceError, TooManyRequests

T = TypeVar("T")

MAX_BYPASSES = 16
"""Maximum number of interactive items admitted before starving background work; then one background item is next."""


class RequestQueue(Generic[T]):
    """Two FIFO queues. Interactive items are admitted first, until background items are overdue.

    The order depends on the number of admissions only, never on time.
    """

    def __init__(self) -> None:
        self.online: deque[T] = deque()
        self.queued: deque[T] = deque()
        self._passed = 0  # interactive items admitted while background items starved

    def __len__(self) -> int:
        return len(self.online) + len(self.queued)

    def __iter__(self) -> Iterator[T]:
        yield from self.online
        yield from self.queued

    @property
    def overdue(self) -> bool:
        """Whether a background item is next even if interactive ones wait."""
        return self._passed >= MAX_BYPASSES and bool(self.queued)

    def add(self, item: T, *, queued: bool) -> None:
        """Append an item to the background queue if ``queued``, else to the interactive one."""
        (self.queued if queued else self.online).append(item)

    def put_back(self, item: T) -> None:
        """Insert a preempted item at the head of the background queue."""
        self.queued.appendleft(item)

    def first(self, *, queued: bool) -> T | None:
        """Return the first item of a kind, or None if the other kind is next or the queue is empty."""
        if queued:
            return self.queued[0] if self.queued and (not self.online or self.overdue) else None
        return self.online[0] if self.online and not self.overdue else None

    def admitted(self, *, queued: bool, starving: bool) -> None:
        """Remove the item that ``first`` returned.

        Args:
            queued: whether it is a background item.
            starving: whether no background item is being processed.
        """
        if queued:
            self.queued.popleft()
            self._passed = 0
            return
        self.online.popleft()
        if starving and self.queued:
            self._passed += 1

    def drop(self, gone: set[T]) -> None:
        """Remove items from both queues."""
        if any(item in gone for item in self.online):
            self.online = deque(item for item in self.online if item not in gone)
        if any(item in gone for item in self.queued):
            self.queued = deque(item for item in self.queued if item not in gone)


class BlockingRequestQueue(Generic[T]):
    """Thread-safe ``RequestQueue`` with any number of producers and one consumer that processes one item at a time."""

    def __init__(self) -> None:
        self._waiting = RequestQueue[T]()
        self._changed = threading.Condition()
        self._closed = False

    @property
    def online(self) -> int:
        """Number of waiting interactive items."""
        return len(self._waiting.online)

    @property
    def queued(self) -> int:
        """Number of waiting background items."""
        return len(self._waiting.queued)

    def put(self, item: T, *, queued: bool) -> None:
        """Add an item and wake the consumer."""
        with self._changed:
            self._waiting.add(item, queued=queued)
            self._changed.notify()

    def take(self) -> T | None:
        """Remove and return the next item, waiting for one; None when the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting))
            for queued in (False, True):
                item = self._waiting.first(queued=queued)
                if item is not None:
                    self._waiting.admitted(queued=queued, starving=True)
                    return item
            return None

    def close(self) -> None:
        """Close the queue: ``take`` returns the remaining items and then None."""
        with self._changed:
            self._closed = True
            self._changed.notify()


class Startable(Protocol):
    """A request whose kind and start time are known."""

    @property
    def queued(self) -> bool:
        """Whether it is a background request, see ``Job``."""
        ...

    @property
    def started(self) -> float:
        """Monotonic time at which its first step began; 0 before that."""
        ...


def timeout_error(seconds: float, request: Startable) -> ServiceError:
    """Return the error for a request that did not finish in time.

    A background request that never started gets ``TooManyRequests``, so that it may be retried without limit; all
    others get ``DeadlineExceeded``.

    Args:
        seconds: the timeout.
        request: the request.
    """
    if request.queued and not request.started:
        return TooManyRequests(f"others went before it for {seconds:g} s (REQUEST_TIMEOUT_SECONDS)", retry_after=1)
    return DeadlineExceeded(f"not finished within {seconds:g} s (REQUEST_TIMEOUT_SECONDS)")
