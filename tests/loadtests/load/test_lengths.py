from __future__ import annotations

import statistics
from random import Random
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from loadtests.load.lengths import Lengths, LengthsOrNumber


@pytest.mark.parametrize(
    ("fields", "mean", "deviation"),
    [
        ({"distribution": "constant", "mean": 64}, 64, 0),
        ({"distribution": "uniform", "min": 10, "max": 20}, 15, 3.2),
        ({"distribution": "normal", "mean": 500, "deviation": 50}, 500, 50),
        ({"distribution": "lognormal", "mean": 500, "deviation": 300}, 500, 300),
        ({"distribution": "exponential", "mean": 500}, 500, 500),
    ],
)
def test_numbers_have_the_mean_and_the_deviation_that_were_asked_for(
    fields: dict[str, Any], mean: float, deviation: float
) -> None:
    """Of the numbers themselves, for the lognormal distribution too; the same seed gives the same numbers."""
    lengths, random = Lengths(**fields), Random(1)
    drawn = [lengths.draw(random) for _ in range(20_000)]
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.03)
    assert statistics.pstdev(drawn) == pytest.approx(deviation, rel=0.05)
    random = Random(1)
    assert drawn[:20] == [lengths.draw(random) for _ in range(20)]


def test_numbers_are_cut_at_the_bounds() -> None:
    """And never below 1."""
    random = Random(1)
    cut = Lengths(distribution="normal", mean=10, deviation=100, min=5, max=12)
    assert {cut.draw(random) for _ in range(200)} >= {5, 12}
    assert Lengths(distribution="constant", mean=0.2).draw(random) == 1


def test_a_number_alone_is_constant() -> None:
    """It is what most scenarios need."""
    assert TypeAdapter(LengthsOrNumber).validate_python(32) == Lengths(distribution="constant", mean=32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distribution": "normal", "mean": 5}, "needs deviation"),
        ({"distribution": "uniform", "min": 5}, "needs max"),
        ({"distribution": "constant", "mean": 5, "deviation": 1}, "takes no deviation"),
        ({"distribution": "uniform", "min": 5, "max": 4}, "min 5 is above max 4"),
        ({"distribution": "constant", "mean": 5, "middle": 5}, "middle"),
        ({"distribution": "zipf", "mean": 5}, "distribution"),
    ],
)
def test_a_distribution_that_is_not_complete_is_refused(fields: dict[str, Any], message: str) -> None:
    """Nothing is ignored: what is missing and what is too much are named."""
    with pytest.raises(ValidationError, match=message):
        Lengths(**fields)
