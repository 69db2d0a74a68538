"""Aggregates runs into medians, ratios and Markdown tables. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtests.peers.load import Stage

Figures = dict[str, float | None]
"""A server's measurements by column; None: not measured, or failed."""


@dataclass
class Run:
    """The measurements of one start of a server: times in seconds since its process's start, memory in bytes."""

    key: str
    name: str
    livez: float | None = None
    first_token: float | None = None
    first_answer: float | None = None
    peak_rss: int | None = None
    answer: str = ""
    """The answer to the question about the capital of France."""
    stages: list[Stage] = field(default_factory=list)
    identical: int | None = None
    """The number of identical answers in the determinism check; None if it was not made."""
    info: dict[str, Any] | None = None
    error: str | None = None


def middle(runs: Sequence[Run], clients: Sequence[int]) -> Figures:
    """Return the medians over the runs of one server.

    A stage that failed in any run has no values, because a throughput with failed answers would be misleading.
    """
    found: Figures = {
        "livez": _median([run.livez for run in runs]),
        "first_token": _median([run.first_token for run in runs]),
        "first_answer": _median([run.first_answer for run in runs]),
        "peak_rss_mb": _median([run.peak_rss and run.peak_rss / 1e6 for run in runs]),
    }
    for count in clients:
        stages = [stage for run in runs for stage in run.stages if stage.clients == count]
        good = [] if any(stage.failures for stage in stages) else stages
        found[f"tokens_per_second@{count}"] = _median([stage.tokens_per_second for stage in good])
        found[f"ttft_p50_ms@{count}"] = _median([stage.ttft_p50_ms for stage in good])
        found[f"ttft_p95_ms@{count}"] = _median([stage.ttft_p95_ms for stage in good])
        found[f"tokens_per_answer@{count}"] = _median([stage.tokens_per_answer for stage in good])
    return found


def ratios(figures: dict[str, Figures], mine: str) -> dict[str, Figures]:
    """Return how many times better one server is than each other one: more tokens per second, less of everything else.

    Args:
        figures: the medians by server.
        mine: the name of the server to compare with the others.
    """
    found: dict[str, Figures] = {}
    for name, theirs in figures.items():
        if name == mine:
            continue
        found[name] = {}
        for column, value in figures[mine].items():
            other, ratio = theirs.get(column), None
            if value and other:
                ratio = value / other if column.startswith("tokens_per_second") else other / value
            found[name][column] = ratio
    return found


def tables(figures: dict[str, Figures], mine: str, clients: Sequence[int]) -> str:
    """Return Markdown tables of medians, ratios and latencies.

    Args:
        figures: the medians by server, in the order of the rows.
        mine: the server whose ratios to the others are shown, if it was measured.
        clients: the numbers of clients.
    """
    at = waits_at(clients)
    columns = {f"tokens_per_second@{count}": f"{count} client{'s' * (count > 1)} tok/s" for count in clients} | {
        f"ttft_p50_ms@{at}": f"TTFT p50 at {at} ms",
        f"ttft_p95_ms@{at}": "p95 ms",
        "livez": "start to live s",
        "first_token": "to first token s",
        "first_answer": "to first answer s",
        "peak_rss_mb": "peak RSS MB",
        f"tokens_per_answer@{at}": "tokens per answer",
    }
    parts = [_table("server", figures, columns, _number)]
    if mine in figures:
        compared = {column: label for column, label in columns.items() if "answer@" not in column}
        better = ratios(figures, mine)
        parts.append(f"{mine} is so many times better (more tokens per second, less of all else):")
        parts.append(_table("than", better, compared, lambda value: f"{_number(value)}x"))
    waits = {
        f"ttft_{p}_ms@{count}": f"{count} client{'s' * (count > 1)} {p} ms" for count in clients for p in ("p50", "p95")
    }
    parts += ["Time to first token:", _table("server", figures, waits, _number)]
    return "\n\n".join(parts)


def waits_at(clients: Sequence[int]) -> int:
    """Return the number of clients whose latencies the first table shows: 16, or the nearest to it."""
    return min(clients, key=lambda count: abs(count - 16))


def _table(corner: str, rows: dict[str, Figures], columns: dict[str, str], cell: Any) -> str:
    lines = [" | ".join([corner, *columns.values()]), "---|" + "|".join("---:" for _ in columns)]
    for name, figures in rows.items():
        values = [figures.get(column) for column in columns]
        lines.append(" | ".join([name, *("-" if value is None else cell(value) for value in values)]))
    return "\n".join(f"| {line} |" if not line.startswith("---") else f"|{line}|" for line in lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
