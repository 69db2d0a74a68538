"""The random numbers of sampling."""

from __future__ import annotations

import numpy as np

from runtime.engine.rng import uniform


def test_uniform_is_fixed_by_its_arguments_and_spread_evenly() -> None:
    """Same arguments, same number; any argument changed, another; 10,000 of them fill [0, 1) evenly."""
    assert uniform(1, 2, 3) == uniform(1, 2, 3)
    assert len({uniform(1, 2, 3), uniform(2, 2, 3), uniform(1, 3, 3), uniform(1, 2, 4), uniform(-1, 2, 3)}) == 5
    draws = np.array([uniform(5, 0, i) for i in range(10_000)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] - 1000).max() < 150


def test_uniform_never_changes() -> None:
    """A seed that a client kept gives its tokens in every later version."""
    assert uniform(42, 0, 0) == 0.127800788776263
    assert uniform(-1, 0, 0) == uniform(2**64 - 1, 0, 0)
