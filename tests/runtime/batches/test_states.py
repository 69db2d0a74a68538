"""runtime.batches.states: which states follow which."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

from runtime.batch_types import BatchState
from runtime.batches.states import ENDED, NEXT, end_of, may_become

STATES: tuple[BatchState, ...] = get_args(BatchState)
CHANGES = {
    ("validating", "in_progress"),
    ("validating", "failed"),
    ("validating", "cancelling"),
    ("validating", "expired"),
    ("in_progress", "finalizing"),
    ("in_progress", "cancelling"),
    ("in_progress", "expired"),
    ("finalizing", "completed"),
    ("cancelling", "cancelled"),
}


def test_all_changes() -> None:
    """These changes and no others; a final state is not left, and every other one leads to one."""
    pairs = itertools.product(STATES, STATES)
    assert {(old, new) for old, new in pairs if may_become(old, new)} == CHANGES
    assert {state for state in STATES if not NEXT[state]} == ENDED


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("over", [False, True])
def test_early_ends(state: BatchState, over: bool) -> None:
    """A batch whose cancellation was requested ends so, whatever the time; its window ends only what still works."""
    expected = {("validating", True): "expired", ("in_progress", True): "expired"}.get((state, over))
    assert end_of(state, window_over=over) == ("cancelled" if state == "cancelling" else expected)
