"""runtime.engine.request_queue: whose turn it is."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from runtime.engine.request_queue import MAX_BYPASSES, BlockingRequestQueue, RequestQueue, timeout_error
from runtime.errors import DeadlineExceeded, ServiceError, TooManyRequests


def test_interactive_work_goes_first() -> None:
    """Each kind is taken in its order, and background work once no interactive work waits."""
    waiting = RequestQueue[str]()
    for item in ("q1", "o1", "q2", "o2"):
        waiting.add(item, background=item[0] == "q")
    assert (len(waiting), list(waiting)) == (4, ["o1", "o2", "q1", "q2"])
    assert (waiting.peek(background=False), waiting.peek(background=True)) == ("o1", None)
    for _ in range(2):
        waiting.pop(background=False, starving=False)
    assert (waiting.peek(background=False), waiting.peek(background=True)) == (None, "q1")
    waiting.pop(background=True, starving=True)
    waiting.add("q4", background=True)
    for item in ("q3", "q1", "o2", "q5"):
        waiting.put_back(item, background=item[0] == "q", arrival=lambda item: int(item[1]))
    assert list(waiting) == ["o2", "q1", "q2", "q3", "q4", "q5"]
    waiting.remove({"q1", "o2", "q3", "q5"})
    assert list(waiting) == ["q2", "q4"]


def test_background_work_is_overdue_at_last() -> None:
    """An overdue background item goes before interactive ones; an item that does not starve is never overdue."""
    waiting = RequestQueue[int]()
    for item in range(MAX_BYPASSES * 3):
        waiting.add(item, background=False)
    waiting.pop(background=False, starving=True)  # no background item waits that could starve
    waiting.add(-1, background=True)
    waiting.add(-2, background=True)
    waiting.pop(background=False, starving=False)
    for _ in range(MAX_BYPASSES):
        assert (waiting.overdue, waiting.peek(background=True)) == (False, None)
        waiting.pop(background=False, starving=True)
    assert waiting.overdue
    assert (waiting.peek(background=False), waiting.peek(background=True)) == (None, -1)
    waiting.pop(background=True, starving=True)
    assert not waiting.overdue
    assert waiting.peek(background=False) == MAX_BYPASSES + 2


def test_an_overdue_item_that_goes_away() -> None:
    """Nobody waits for what is not there any more."""
    waiting = RequestQueue[int]()
    waiting.add(-1, background=True)
    for item in range(MAX_BYPASSES + 1):
        waiting.add(item, background=False)
    for _ in range(MAX_BYPASSES):
        waiting.pop(background=False, starving=True)
    waiting.remove({-1})
    assert waiting.peek(background=False) == MAX_BYPASSES


def test_an_inbox_between_threads() -> None:
    """Whoever takes waits for more, gets each thing once and in order, and learns of the end after the last."""
    inbox, taken = BlockingRequestQueue[int](), list[int]()

    def work() -> None:
        while (item := inbox.get()) is not None:
            taken.append(item)

    thread = threading.Thread(target=work)
    putting = [
        threading.Thread(target=lambda k=k: [inbox.put(k * 100 + i, background=k % 2 == 0) for i in range(100)])  # type: ignore[misc]
        for k in range(4)
    ]
    thread.start()
    for one in putting:
        one.start()
    for one in putting:
        one.join()
    inbox.close()
    thread.join(5)
    assert sorted(taken) == list(range(400))
    assert (inbox.interactive, inbox.background) == (0, 0)
    for k in range(4):
        assert [item for item in taken if item // 100 == k] == [k * 100 + i for i in range(100)]


def test_an_inbox_lets_no_kind_starve() -> None:
    """Of two long queues, one background item is taken after every sixteen interactive ones."""
    inbox = BlockingRequestQueue[bool]()
    for _ in range(100):
        inbox.put(False, background=False)
        inbox.put(True, background=True)
    taken = [inbox.get() for _ in range(MAX_BYPASSES * 3 + 3)]
    assert taken == ([False] * MAX_BYPASSES + [True]) * 3
    assert (inbox.interactive, inbox.background) == (100 - 3 * MAX_BYPASSES, 97)


@dataclass
class Request:
    background: bool
    started: float


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Request(background=False, started=0), DeadlineExceeded),
        (Request(background=False, started=5), DeadlineExceeded),
        (Request(background=True, started=5), DeadlineExceeded),
        (Request(background=True, started=0), TooManyRequests),
    ],
)
def test_what_is_to_blame(request_: Request, error: type[ServiceError]) -> None:
    """Only background work that never started gets TooManyRequests, so that it is retried and not dead-lettered."""
    assert type(timeout_error(3, request_)) is error
    assert "REQUEST_TIMEOUT_SECONDS" in timeout_error(3, request_).message
