from __future__ import annotations

from typing import Any

import pytest

from loadtests.guidellm_check import FIGURES, figures_of, table, theirs


def test_both_reports_have_the_same_figures() -> None:
    """GuideLLM's are those of its successful requests."""
    mine = {"segments": [{"repetitions": [dict.fromkeys(FIGURES, 2.0)]}]}
    metrics: dict[str, Any] = {}
    for metric, statistic, _ in FIGURES.values():
        metrics.setdefault(metric, {"successful": {}})["successful"][statistic] = 2.0
    assert figures_of(mine) == theirs({"benchmarks": [{"metrics": metrics}]}) == dict.fromkeys(FIGURES, 2.0)


@pytest.mark.parametrize(("value", "agrees"), [(2.09, True), (1.91, True), (2.11, False)])
def test_a_difference_of_more_than_5_percent_fails(value: float, agrees: bool) -> None:
    """Of the means of all rounds, in either direction."""
    base = dict.fromkeys(FIGURES, 2.0)
    text, found = table({"guidellm": [base, base], "ours": [base | {"mean_ttft_ms": value * 2 - 2.0}, base]})
    assert found is agrees
    assert len(text.splitlines()) == 2 + len(FIGURES)
