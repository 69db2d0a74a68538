"""Chooses the rates of a sweep, and finds from them where the server is saturated. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.load.arrivals import Sweep
from loadtests.load.figures import Values

_SHARE = 0.9  # of the requests due in a window that must end in it
_MOST_ERRORS = 0.01


@dataclass(frozen=True)
class RateResult:
    """What a rate did to the server."""

    rate: float
    kept_up: bool
    """Whether as many requests ended as were due."""
    objective: bool
    """Whether enough requests reached the service level objective."""


def kept_up(figures: Values) -> bool:
    """Return whether a server answered a window's requests as fast as they came.

    The requests that ended in the window must be nearly as many as were due in it; otherwise a queue grew. Two requests
    and the random spread of the count are tolerated, as in short windows few requests make a great share.
    """
    due, ended = figures["requests"] or 0.0, figures["ended"] or 0.0
    missing = due - ended - (figures["hung_up"] or 0.0)
    tolerated = max(due * (1 - _SHARE), 2.0, math.sqrt(due) / 2)
    return (figures["error_ratio"] or 0.0) <= _MOST_ERRORS and missing <= tolerated


def next_rate(sweep: Sweep, results: Sequence[RateResult]) -> float | None:
    """Return the next rate of a sweep; None: it has ended.

    It grows by the sweep's factor until the server does not keep up, then halves the distance between the greatest rate
    at which it did and the least at which it did not. If even the first rate is too much, it shrinks.
    """
    if len(results) >= sweep.max_stages:
        return None
    if not results:
        return sweep.rate
    good, bad = _bracket(results)
    if bad is None:
        return (good or sweep.rate) * sweep.factor
    if good is None:
        return bad / sweep.factor
    bracketed = next(count for count in range(2, len(results) + 1) if None not in _bracket(results[:count]))
    return (good + bad) / 2 if len(results) - bracketed < sweep.refinements else None


def saturation(results: Sequence[RateResult]) -> tuple[float | None, float | None]:
    """Return the greatest rate that the server kept up with, and the greatest below it that met the objective."""
    good, bad = _bracket(results)
    met = [result.rate for result in results if result.kept_up and result.objective and result.rate < (bad or math.inf)]
    return good, max(met, default=None)


def _bracket(results: Sequence[RateResult]) -> tuple[float | None, float | None]:
    """Return the greatest rate that was kept up with below the least that was not, and that one."""
    bad = min((result.rate for result in results if not result.kept_up), default=None)
    good = [result.rate for result in results if result.kept_up and result.rate < (bad or math.inf)]
    return max(good, default=None), bad
