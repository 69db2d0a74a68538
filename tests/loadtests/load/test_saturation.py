from __future__ import annotations

import pytest

from loadtests.load.arrivals import Sweep
from loadtests.load.figures import Values
from loadtests.load.saturation import RateResult, kept_up, next_rate, saturation


def swept(sweep: Sweep, limit: float, objective: float) -> list[RateResult]:
    """What a sweep finds of a server that keeps up to a limit and is in time up to another."""
    results: list[RateResult] = []
    while (rate := next_rate(sweep, results)) is not None:
        results.append(RateResult(rate, rate <= limit, rate <= objective))
    return results


def test_a_sweep_rises_until_the_server_is_saturated_and_refines() -> None:
    """Then it halves the distance twice and stops."""
    results = swept(Sweep(type="sweep", seconds=1, rate=1, factor=2, refinements=2), limit=11, objective=5)
    assert [result.rate for result in results] == [1, 2, 4, 8, 16, 12, 10]
    assert saturation(results) == (10, 4)


def test_a_sweep_that_begins_too_high_goes_down() -> None:
    """Until the server keeps up."""
    results = swept(Sweep(type="sweep", seconds=1, rate=8, factor=2, refinements=1), limit=3, objective=0)
    assert [result.rate for result in results] == [8, 4, 2, 3]
    assert saturation(results) == (3, None)


def test_a_sweep_ends() -> None:
    """Also against a server that keeps up with everything, or with nothing."""
    fast = swept(Sweep(type="sweep", seconds=1, max_stages=5), limit=1e9, objective=1e9)
    assert len(fast) == 5
    assert saturation(fast) == (fast[-1].rate, fast[-1].rate)
    dead = swept(Sweep(type="sweep", seconds=1, max_stages=5), limit=0, objective=0)
    assert len(dead) == 5
    assert saturation(dead) == (None, None)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"requests": 100, "ended": 95}, True),
        ({"requests": 100, "ended": 85}, False),
        ({"requests": 10, "ended": 8}, True),  # two requests are not a queue
        ({"requests": 10, "ended": 7}, False),
        ({"requests": 100, "ended": 120}, True),
        ({"requests": 100, "ended": 50, "hung_up": 45}, True),
        ({"requests": 100, "ended": 98, "error_ratio": 0.02}, False),
    ],
)
def test_a_server_keeps_up_if_as_many_requests_end_as_come(figures: Values, expected: bool) -> None:
    """Errors are no way to keep up."""
    assert kept_up({"hung_up": 0, "error_ratio": 0} | figures) is expected
