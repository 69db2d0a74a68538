"""runtime.events.idempotency.transitions: how expired leases are counted, as pure functions."""

from __future__ import annotations

from runtime.events.idempotency.records import Started
from runtime.events.idempotency.transitions import begin, release


def test_work_that_was_given_back_is_no_crash() -> None:
    """A lease that expires counts as a crash; one that is released does not, and the count before it is kept."""
    record, answer = begin(None, "payload", "first", seconds=10, now=0)
    assert answer == Started(0)
    record, answer = begin(record, "payload", "second", seconds=10, now=20)
    assert answer == Started(1)
    released, _ = release(record, "second", now=21)
    _, answer = begin(released, "payload", "third", seconds=10, now=22)
    assert answer == Started(1)
