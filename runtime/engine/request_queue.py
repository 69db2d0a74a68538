"""What waits for a model: online work, whose caller waits for the answer, and queued work, for which nobody does."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from runtime.errors import DeadlineExceeded, ServiceError, TooManyRequests

T = TypeVar("T")

MAX_BYPASSES = 16
"""Online ones that may go before queued work that starves; then one of that goes, whoever else waits."""


class RequestQueue(Generic[T]):
    """Two queues, each in order of arrival. Online work goes first, until queued work is overdue.

    No clock has a say in that: all that counts is who goes.
    """

    def __init__(self) -> None:
        self.online: deque[T] = deque()
        self.queued: deque[T] = deque()
        self._passed = 0  # online ones that went while queued ones starved

    def __len__(self) -> int:
        return len(self.online) + len(self.queued)

    def __iter__(self) -> Iterator[T]:
        yield from self.online
        yield from self.queued

    @property
    def overdue(self) -> bool:
        """Whether a queued one goes next, whoever else waits."""
        return self._passed >= MAX_BYPASSES and bool(self.queued)

    def add(self, item: T, *, queued: bool) -> None:
        """Put one at the end of its queue."""
        (self.queued if queued else self.online).append(item)

    def put_back(self, item: T) -> None:
        """Put a queued one before all others of its kind."""
        self.queued.appendleft(item)

    def first(self, *, queued: bool) -> T | None:
        """The first of a kind, if it is that kind's turn."""
        if queued:
            return self.queued[0] if self.queued and (not self.online or self.overdue) else None
        return self.online[0] if self.online and not self.overdue else None

    def admitted(self, *, queued: bool, starving: bool) -> None:
        """Take out what ``first`` gave.

        Args:
            queued: its kind.
            starving: whether nothing queued is being worked on.
        """
        if queued:
            self.queued.popleft()
            self._passed = 0
            return
        self.online.popleft()
        if starving and self.queued:
            self._passed += 1

    def drop(self, gone: set[T]) -> None:
        """Take these out, wherever they are."""
        if any(item in gone for item in self.online):
            self.online = deque(item for item in self.online if item not in gone)
        if any(item in gone for item in self.queued):
            self.queued = deque(item for item in self.queued if item not in gone)


class BlockingRequestQueue(Generic[T]):
    """``RequestQueue`` between threads: any of them puts in, and one takes out and works on one at a time."""

    def __init__(self) -> None:
        self._waiting = RequestQueue[T]()
        self._changed = threading.Condition()
        self._closed = False

    @property
    def online(self) -> int:
        """Online ones that wait."""
        return len(self._waiting.online)

    @property
    def queued(self) -> int:
        """Queued ones that wait."""
        return len(self._waiting.queued)

    def put(self, item: T, *, queued: bool) -> None:
        """Add one."""
        with self._changed:
            self._waiting.add(item, queued=queued)
            self._changed.notify()

    def take(self) -> T | None:
        """Wait for the next one; None when it is closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting))
            for queued in (False, True):
                item = self._waiting.first(queued=queued)
                if item is not None:
                    self._waiting.admitted(queued=queued, starving=True)
                    return item
            return None

    def close(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._closed = True
            self._changed.notify()


class Startable(Protocol):
    """A request, by what is known of its beginning."""

    @property
    def queued(self) -> bool:
        """See ``Job``."""
        ...

    @property
    def started(self) -> float:
        """Monotonic time at which its first step began, 0 before that."""
        ...


def timeout_error(seconds: float, request: Startable) -> ServiceError:
    """Why a request ends that was not finished in so many seconds.

    Queued work that had no turn yet is not to blame: it may come again as often as it likes.
    """
    if request.queued and not request.started:
        return TooManyRequests(f"others went before it for {seconds:g} s (REQUEST_TIMEOUT_SECONDS)", retry_after=1)
    return DeadlineExceeded(f"not finished within {seconds:g} s (REQUEST_TIMEOUT_SECONDS)")
