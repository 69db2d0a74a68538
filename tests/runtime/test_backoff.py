"""Pauses after failures: exponential backoff with full jitter, and calls that fail at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.backoff import FailurePause, full_jitter
from tests.support.clock import Clock


@pytest.mark.parametrize(("failures", "seconds"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 5.0), (10_000, 5.0)])
def test_the_pause_doubles_up_to_its_maximum(failures: int, seconds: float) -> None:
    """The drawn number scales the maximum, which is 1, 2, 4, 8 and then 10 seconds here."""
    assert full_jitter(failures, 1.0, 10.0, lambda: 0.5) == seconds


@given(st.integers(1, 2**40), st.floats(0, 1))
def test_the_pause_stays_within_its_bounds(failures: int, drawn: float) -> None:
    """No number of failures and no drawn number leads out of the bounds."""
    assert 0 <= full_jitter(failures, 0.2, 10.0, lambda: drawn) <= 10.0


def test_calls_fail_at_once_for_a_second_after_a_failure() -> None:
    """The pause starts with a failure, starts anew with another one, and ends by itself."""
    clock = Clock()
    pause = FailurePause(1.0, clock)
    assert not pause.active
    pause.start()
    assert pause.active
    clock.now += 0.75
    pause.start()
    clock.now += 0.75
    assert pause.active
    clock.now += 0.25
    assert not pause.active
