"""The figures of a report: their names, which are those of ``vllm bench serve``, and which direction is better."""

from __future__ import annotations

_LATENCIES = ("ttft", "tpot", "itl", "e2el")
PERCENTILES = (50, 90, 95, 99)
_STATISTICS = ("mean", "median", "std", *(f"p{percent}" for percent in PERCENTILES))

FIGURES: dict[str, bool] = {
    "request_throughput": True,
    "request_goodput": True,
    "slo_attainment": True,
    "output_throughput": True,
    "total_token_throughput": True,
    "error_ratio": False,
    "server_cpu_cores": False,
    "server_memory_mb": False,
    **{f"{statistic}_{latency}_ms": False for latency in _LATENCIES for statistic in _STATISTICS},
}
"""Figures of a stage that limits and comparisons can name; True if more is better."""

SWEEP_FIGURES: dict[str, bool] = {"saturation_rate": True, "goodput_rate": True}
"""Figures of a whole sweep, in requests per second."""


def more_is_better(figure: str) -> bool:
    """Return whether a greater value of a figure is better."""
    return FIGURES[figure] if figure in FIGURES else SWEEP_FIGURES[figure]
