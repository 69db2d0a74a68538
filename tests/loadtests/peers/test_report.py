from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loadtests.peers.load import Stage
from loadtests.peers.report import Run, middle, ratios, tables


def _stage(clients: int, rate: float, wait: float = 100.0, failures: int = 0) -> Stage:
    return Stage(clients, rate, wait, wait * 2, 64, 84, 10, failures, 0.1, 0.0)


def _run(key: str, rates: Sequence[float], **more: Any) -> Run:
    return Run(key, key.title(), 0.5, 2.0, 3.0, 400_000_000, stages=[_stage(8, rate) for rate in rates], **more)


def test_figures_are_medians_of_the_rounds() -> None:
    """A run that has none of a kind does not count for it; a stage that was never reached has none."""
    runs = [_run("a", [10.0]), _run("a", [30.0]), _run("a", [20.0]), Run("a", "A", error="did not start")]
    figures = middle(runs, (8, 16))
    assert figures["tokens_per_second@8"] == 20.0
    assert figures["ttft_p95_ms@8"] == 200.0
    assert figures["peak_rss_mb"] == 400.0
    assert figures["first_answer"] == 3.0
    assert figures["tokens_per_second@16"] is None


def test_a_stage_with_failures_has_no_figures() -> None:
    """A server that refuses half of its requests is not faster for it."""
    bad = Run("a", "A", stages=[_stage(8, 99.0, failures=1)])
    assert middle([_run("a", [10.0]), bad], (8,))["tokens_per_second@8"] is None


def test_a_ratio_above_one_is_better() -> None:
    """More tokens per second, but less time and memory; nothing is compared with what was not measured."""
    mine = {"tokens_per_second@8": 60.0, "livez": 0.5, "peak_rss_mb": 400.0, "ttft_p50_ms@8": None}
    theirs = {"tokens_per_second@8": 20.0, "livez": 1.0, "peak_rss_mb": 200.0, "ttft_p50_ms@8": 5.0}
    assert ratios({"me": mine, "you": theirs}, "me") == {
        "you": {"tokens_per_second@8": 3.0, "livez": 2.0, "peak_rss_mb": 0.5, "ttft_p50_ms@8": None}
    }


def test_tables_are_markdown() -> None:
    """Every row has the columns of its head; what is not known is a dash; ratios only if Warmstart was measured."""
    figures = {
        "Warmstart": middle([_run("w", [1234.5])], (1, 8)),
        "Peer": middle([_run("p", [100.0]), Run("p", "P", error="x")], (1, 8)),
    }
    text = tables(figures, "Warmstart", (1, 8))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 3
    for block in blocks:
        assert len({row.count("|") for row in block}) == 1, block
        assert all(row.startswith("|") and row.endswith("|") for row in block)
    assert "| Warmstart | - | 1,234 | 100 | 200 | 0.50 | 2.00 | 3.00 | 400 | 64.0 |" in text
    assert "| Peer | - | 12.3x | 1.00x |" in text
    assert "times better" not in tables({"Peer": figures["Peer"]}, "Warmstart", (1, 8))
