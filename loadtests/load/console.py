"""What a run prints: progress on standard error, tables and verdicts on standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from loadtests.load.report import Report, SegmentResult
from loadtests.load.verdict import Comparison

_BAR = 30
_COLUMNS = {
    "request_throughput": "req/s",
    "output_throughput": "tok/s",
    "request_goodput": "goodput/s",
    "slo_attainment": "in SLO",
    "median_ttft_ms": "TTFT p50",
    "p99_ttft_ms": "p99 ms",
    "median_tpot_ms": "TPOT p50",
    "p99_itl_ms": "ITL p99",
    "p99_e2el_ms": "E2E p99",
    "failed": "errors",
    "server_cpu_cores": "CPU",
    "server_memory_mb": "MB",
}


class Progress:
    """One line that is rewritten on a terminal; elsewhere a line per stage."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and not quiet
        self._shown = 0.0

    def say(self, text: str) -> None:
        """Print a line."""
        if not self._quiet:
            print(f"\r\x1b[K{text}" if self._terminal else text, file=sys.stderr, flush=True)

    def show(self, label: str, part: float, requests: int, errors: int) -> None:
        """Show how far a stage is.

        Args:
            label: the stage.
            part: from 0 to 1.
            requests: how many have ended.
            errors: how many of them failed.
        """
        now = time.monotonic()
        if self._terminal and now - self._shown > 0.2:
            self._shown = now
            filled = round(min(1.0, part) * _BAR)
            bar = "#" * filled + "-" * (_BAR - filled)
            text = f"{label} [{bar}] {min(1.0, part):4.0%}  {requests} requests, {errors} errors"
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def table(segments: Sequence[SegmentResult]) -> str:
    """Return the figures of all segments as a table, with ± the half-width of the confidence interval."""
    rows = [["", *_COLUMNS.values()]]
    for segment in segments:
        label = segment.name if segment.name == segment.stage else f"{segment.stage}: {segment.name}"
        rows.append([label, *(_cell(segment, figure) for figure in _COLUMNS)])
    return _aligned(rows, str.rjust)


def summary(report: Report) -> str:
    """Return the table and the sentences about a run."""
    lines = [table(report.segments)]
    for segment in report.segments:
        lines += [f"{segment.name}: {count} x {kind}" for kind, count in segment.errors.items()]
        lines += [f"  {example}" for example in segment.error_examples[:3]]
    if report.sweep:
        saturation, goodput = report.sweep.get("saturation_rate"), report.sweep.get("goodput_rate")
        lines.append(
            f"Saturation: the server keeps up with {number(saturation)} requests/s; "
            f"within the objective with {number(goodput)} requests/s"
        )
    lines += [f"THE GENERATOR WAS THE BOTTLENECK: {sentence}" for sentence in report.bottleneck]
    lines += [f"LIMIT {sentence}" for sentence in report.broken_limits]
    if not report.complete:
        lines.append("The run did not end; these are its finished stages.")
    return "\n".join(lines)


def comparison(found: Sequence[Comparison]) -> str:
    """Return the comparison of two reports as a table."""
    rows = [["figure", "where", "before", "after", "ratio", "limit", ""]]
    for item in found:
        ratio = "-" if item.ratio is None else f"{item.ratio:.3f}"
        verdict = "" if item.limit is None else "ok" if item.passed else "WORSE"
        if item.limit is not None and not item.significant:
            verdict += " (within the confidence intervals)"
        limit = "" if item.limit is None else f"{item.limit:g}"
        rows.append(
            [item.figure, item.segment, number(item.before.mean), number(item.after.mean), ratio, limit, verdict]
        )
    return _aligned(rows, str.ljust)


def number(value: float | None) -> str:
    """Return a figure with three or more digits that mean something."""
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _cell(segment: SegmentResult, figure: str) -> str:
    found = segment.estimate(figure)
    if found is None:
        return "-"
    return number(found.mean) + (f" ±{number(found.half_width)}" if found.half_width is not None else "")


def _aligned(rows: Sequence[Sequence[str]], adjust: Callable[[str, int], str]) -> str:
    """Return rows with equal columns; the first is on the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [adjust(cell, width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
