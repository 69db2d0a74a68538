"""The states of a batch and the changes between them (OpenAI's Batch API)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from runtime.batch_types import ENDED_STATES, BatchState

ENDED = frozenset(ENDED_STATES)

NEXT: Mapping[BatchState, frozenset[BatchState]] = MappingProxyType(
    {
        "validating": frozenset({"in_progress", "failed", "cancelling", "expired"}),
        "in_progress": frozenset({"finalizing", "cancelling", "expired"}),
        "finalizing": frozenset({"completed"}),
        "cancelling": frozenset({"cancelled"}),
        **dict.fromkeys(ENDED, frozenset()),
    }
)
"""The states that may follow each state."""


def may_become(state: BatchState, following: BatchState) -> bool:
    """Return whether a batch may change from one state to another."""
    return following in NEXT[state]


def end_of(state: BatchState, *, window_over: bool) -> BatchState | None:
    """Return the final state that a batch is to get now, before all its rows are done; None if its rows shall run.

    Args:
        state: its state.
        window_over: whether its completion window has ended.
    """
    if state == "cancelling":
        return "cancelled"
    return "expired" if window_over and state in ("validating", "in_progress") else None
