"""Two-level request queues: interactive requests are admitted first, and background requests do not starve."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from runtime.errors import DeadlineExceeded, ServiceError, TooManyRequests

T = TypeVar("T")

MAX_BYPASSES = 16
"""Maximum number of times that background work is passed over for interactive work; then background work is next."""


class TwoLevelQueue(Generic[T]):
    """Two FIFO queues. Interactive items go first, until background items are overdue.

    The order depends on the number of admissions only, never on time. What an admission is, subclasses say.
    """

    def __init__(self) -> None:
        self.interactive: deque[T] = deque()
        self.background: deque[T] = deque()
        self._bypasses = 0  # admissions in a row that passed over background items

    def __len__(self) -> int:
        return len(self.interactive) + len(self.background)

    def __iter__(self) -> Iterator[T]:
        yield from self.interactive
        yield from self.background

    @property
    def overdue(self) -> bool:
        """Whether a background item is next even if interactive ones wait."""
        return self._bypasses >= MAX_BYPASSES and bool(self.background)

    def add(self, item: T, *, background: bool) -> None:
        """Append an item to the background queue if ``background``, else to the interactive one."""
        (self.background if background else self.interactive).append(item)

    def remove(self, items: set[T]) -> None:
        """Remove items from both queues."""
        if any(item in items for item in self.interactive):
            self.interactive = deque(item for item in self.interactive if item not in items)
        if any(item in items for item in self.background):
            self.background = deque(item for item in self.background if item not in items)


class RequestQueue(TwoLevelQueue[T]):
    """A queue whose items are admitted one by one, and may be put back."""

    def put_back(self, item: T, *, background: bool, arrival: Callable[[T], int]) -> None:
        """Insert a preempted item into its queue, before the first one that arrived later.

        Args:
            item: the item.
            background: whether it is a background item.
            arrival: returns an item's place in the order of arrival.
        """
        queue = self.background if background else self.interactive
        later = (index for index, other in enumerate(queue) if arrival(other) > arrival(item))
        queue.insert(next(later, len(queue)), item)

    def peek(self, *, background: bool) -> T | None:
        """Return the first item of a kind, or None if the other kind is next or the queue is empty."""
        if background:
            return self.background[0] if self.background and (not self.interactive or self.overdue) else None
        return self.interactive[0] if self.interactive and not self.overdue else None

    def pop(self, *, background: bool, starving: bool) -> None:
        """Remove the item that ``peek`` returned.

        Args:
            background: whether it is a background item.
            starving: whether no background item is being processed.
        """
        if background:
            self.background.popleft()
            self._bypasses = 0
            return
        self.interactive.popleft()
        if starving and self.background:
            self._bypasses += 1


class BlockingRequestQueue(Generic[T]):
    """Thread-safe ``RequestQueue`` with any number of producers and one consumer that processes one item at a time."""

    def __init__(self) -> None:
        self._queue = RequestQueue[T]()
        self._condition = threading.Condition()
        self._closed = False

    @property
    def interactive(self) -> int:
        """Number of waiting interactive items."""
        return len(self._queue.interactive)

    @property
    def background(self) -> int:
        """Number of waiting background items."""
        return len(self._queue.background)

    def put(self, item: T, *, background: bool) -> None:
        """Add an item and wake the consumer."""
        with self._condition:
            self._queue.add(item, background=background)
            self._condition.notify()

    def get(self) -> T | None:
        """Remove and return the next item, waiting for one; None when the queue is closed and empty."""
        with self._condition:
            self._condition.wait_for(lambda: self._closed or len(self._queue))
            for background in (False, True):
                item = self._queue.peek(background=background)
                if item is not None:
                    self._queue.pop(background=background, starving=True)
                    return item
            return None

    def close(self) -> None:
        """Close the queue: ``get`` returns the remaining items and then None."""
        with self._condition:
            self._closed = True
            self._condition.notify()


class Startable(Protocol):
    """A request whose kind and start time are known."""

    @property
    def background(self) -> bool:
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
    if request.background and not request.started:
        return TooManyRequests(
            f"still queued after {seconds:g} s behind interactive requests (REQUEST_TIMEOUT_SECONDS)", retry_after=1
        )
    return DeadlineExceeded(f"the request did not finish within {seconds:g} s (REQUEST_TIMEOUT_SECONDS)")
