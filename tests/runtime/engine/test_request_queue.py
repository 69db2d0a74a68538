"""runtime.engine.request_queue: whose turn it is."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from runtime.engine.request_queue import MAX_BYPASSES, BlockingRequestQueue, RequestQueue, timeout_error
from runtime.errors import DeadlineExceeded, ServiceError, TooManyRequests


def test_online_work_goes_first() -> None:
    """Each kind in its order; queued work once no online work waits."""
    waiting = RequestQueue[str]()
    for item in ("q1", "o1", "q2", "o2"):
        waiting.add(item, queued=item[0] == "q")
    assert (len(waiting), list(waiting)) == (4, ["o1", "o2", "q1", "q2"])
    assert (waiting.first(queued=False), waiting.first(queued=True)) == ("o1", None)
    for _ in range(2):
        waiting.admitted(queued=False, starving=False)
    assert (waiting.first(queued=False), waiting.first(queued=True)) == (None, "q1")
    waiting.admitted(queued=True, starving=True)
    waiting.put_back("q1")
    assert list(waiting) == ["q1", "q2"]
    waiting.drop({"q1"})
    assert list(waiting) == ["q2"]


def test_queued_work_is_overdue_at_last() -> None:
    """Whoever comes online waits for one queued item then; work that does not starve is never overdue."""
    waiting = RequestQueue[int]()
    for item in range(MAX_BYPASSES * 3):
        waiting.add(item, queued=False)
    waiting.admitted(queued=False, starving=True)  # nothing queued waits that could starve
    waiting.add(-1, queued=True)
    waiting.add(-2, queued=True)
    waiting.admitted(queued=False, starving=False)
    for _ in range(MAX_BYPASSES):
        assert (waiting.overdue, waiting.first(queued=True)) == (False, None)
        waiting.admitted(queued=False, starving=True)
    assert waiting.overdue
    assert (waiting.first(queued=False), waiting.first(queued=True)) == (None, -1)
    waiting.admitted(queued=True, starving=True)
    assert not waiting.overdue
    assert waiting.first(queued=False) == MAX_BYPASSES + 2


def test_an_overdue_item_that_goes_away() -> None:
    """Nobody waits for what is not there any more."""
    waiting = RequestQueue[int]()
    waiting.add(-1, queued=True)
    for item in range(MAX_BYPASSES + 1):
        waiting.add(item, queued=False)
    for _ in range(MAX_BYPASSES):
        waiting.admitted(queued=False, starving=True)
    waiting.drop({-1})
    assert waiting.first(queued=False) == MAX_BYPASSES


def test_an_inbox_between_threads() -> None:
    """Whoever takes waits for more, gets each thing once and in order, and learns of the end after the last."""
    inbox, taken = BlockingRequestQueue[int](), list[int]()

    def work() -> None:
        while (item := inbox.take()) is not None:
            taken.append(item)

    thread = threading.Thread(target=work)
    putting = [
        threading.Thread(target=lambda k=k: [inbox.put(k * 100 + i, queued=k % 2 == 0) for i in range(100)])  # type: ignore[misc]
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
    assert (inbox.online, inbox.queued) == (0, 0)
    for k in range(4):
        assert [item for item in taken if item // 100 == k] == [k * 100 + i for i in range(100)]


def test_an_inbox_lets_no_kind_starve() -> None:
    """Of two long queues, one queued item goes for sixteen online ones."""
    inbox = BlockingRequestQueue[bool]()
    for _ in range(100):
        inbox.put(False, queued=False)
        inbox.put(True, queued=True)
    taken = [inbox.take() for _ in range(MAX_BYPASSES * 3 + 3)]
    assert taken == ([False] * MAX_BYPASSES + [True]) * 3
    assert (inbox.online, inbox.queued) == (100 - 3 * MAX_BYPASSES, 97)


@dataclass
class Request:
    queued: bool
    started: float


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Request(queued=False, started=0), DeadlineExceeded),
        (Request(queued=False, started=5), DeadlineExceeded),
        (Request(queued=True, started=5), DeadlineExceeded),
        (Request(queued=True, started=0), TooManyRequests),
    ],
)
def test_what_is_to_blame(request_: Request, error: type[ServiceError]) -> None:
    """Only queued work that never had a turn is told that the service is busy; so it does not become a dead letter."""
    assert type(timeout_error(3, request_)) is error
    assert "REQUEST_TIMEOUT_SECONDS" in timeout_error(3, request_).message
