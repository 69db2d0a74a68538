"""Judges the choice of the next token."""

from __future__ import annotations

from collections import Counter
from math import log
from types import ModuleType

_HALVES = [log(0.5), log(0.25), log(0.125), log(0.125)]


def _shares(exercise: ModuleType, logits: list[float], **options: float) -> dict[int, float]:
    counts = Counter(exercise.next_token(logits, (i + 0.5) / 1000, **options) for i in range(1000))
    return {token: counts[token] / 1000 for token in sorted(counts)}


def check_greedy(exercise: ModuleType) -> None:
    """Temperature 0 takes the likeliest token, of equal ones the first, whatever the draw."""
    assert {exercise.next_token([1.0, 3.0, 3.0], draw, temperature=0) for draw in (0.0, 0.5, 0.999)} == {1}


def check_distribution(exercise: ModuleType) -> None:
    """Evenly spread draws give each token as often as its probability says."""
    assert _shares(exercise, _HALVES) == {0: 0.5, 1: 0.25, 2: 0.125, 3: 0.125}


def check_temperature(exercise: ModuleType) -> None:
    """Temperature 0.5 squares the odds of two tokens."""
    shares = _shares(exercise, [log(0.75), log(0.25)], temperature=0.5)
    assert shares == {0: 0.9, 1: 0.1}, shares


def check_top_k(exercise: ModuleType) -> None:
    """The likeliest k share the whole probability."""
    assert set(_shares(exercise, _HALVES, top_k=2)) == {0, 1}
    assert _shares(exercise, [0.0, 0.0, -5.0], top_k=2) == {0: 0.5, 1: 0.5}
    assert exercise.next_token(_HALVES, 0.999, top_k=1) == 0


def check_top_p(exercise: ModuleType) -> None:
    """The token with which the sum reaches top_p is still possible, the next one is not, and one always is."""
    assert set(_shares(exercise, _HALVES, top_p=0.6)) == {0, 1}
    assert set(_shares(exercise, _HALVES, top_p=0.0)) == {0}


def check_large_logits(exercise: ModuleType) -> None:
    """Logits of a thousand do not overflow."""
    assert exercise.next_token([1000.0, 0.0], 0.5) == 0
    assert exercise.next_token([-1000.0, -2000.0], 0.999) == 0


def check_last(exercise: ModuleType) -> None:
    """A draw just below 1 still gives a token, in spite of rounding."""
    assert 0 <= exercise.next_token([0.1] * 10, 0.9999999999999999) < 10
