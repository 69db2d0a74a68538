"""Judges a report by its limits, compares two reports, and says whether the generator was the bottleneck."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from loadtests.load.figure_names import FIGURES, SWEEP_FIGURES, more_is_better
from loadtests.load.figures import Estimate
from loadtests.load.report import Report, SegmentResult, StageRun

LATE_MS = 10.0
"""A generator whose requests are this much late at p99 is not a measure of the server."""
BUSY_CORES = 0.9
SHOWN = ("request_throughput", "output_throughput", "request_goodput", "median_ttft_ms", "p99_ttft_ms")
SHOWN_TOO = ("median_tpot_ms", "p99_itl_ms", "p99_e2el_ms", "server_cpu_cores", "server_memory_mb")


@dataclass(frozen=True)
class Comparison:
    """A figure of a segment in two reports."""

    segment: str
    figure: str
    before: Estimate
    after: Estimate
    limit: float | None
    """The worst ratio that passes; None: it is only shown."""

    @property
    def ratio(self) -> float | None:
        """After over before; None if before is 0."""
        return self.after.mean / self.before.mean if self.before.mean else None

    @property
    def significant(self) -> bool:
        """Whether the confidence intervals are apart; without repetitions there are none, and every change counts."""
        (low, high), (other_low, other_high) = self.before.interval, self.after.interval
        return high < other_low or other_high < low

    @property
    def passed(self) -> bool:
        """Whether the limit is kept, or the change is within the confidence intervals."""
        if self.limit is None or self.ratio is None:
            return True
        kept = self.ratio >= self.limit if more_is_better(self.figure) else self.ratio <= self.limit
        return kept or not self.significant


def broken_limits(report: Report, limits: Mapping[str, float]) -> list[str]:
    """Return a sentence for each limit that a run has broken. A figure that was not measured breaks its limit."""
    found = []
    if not any(segment.mean("requests") for segment in report.segments):
        found.append("no request was made")
    for figure, limit in limits.items():
        values: dict[str, float | None] = (
            {"sweep": (report.sweep or {}).get(figure)}
            if figure in SWEEP_FIGURES
            else {segment.name: segment.mean(figure) for segment in report.segments}
        )
        word = "below" if more_is_better(figure) else "above"
        for name, value in values.items():
            if value is None:
                found.append(f"{name}: {figure} was not measured, its limit is {limit:g}")
            elif value < limit if more_is_better(figure) else value > limit:
                found.append(f"{name}: {figure} {value:.4g} is {word} its limit {limit:g}")
    return found


def compare(before: Report, after: Report, ratios: Mapping[str, float]) -> list[Comparison]:
    """Return the figures that both reports have: those with a limit first, then the usual ones.

    Segments are matched by stage and name. A sweep's stages are matched where the rates are equal.
    """
    wanted: dict[str, float | None] = {**ratios}
    wanted |= {figure: None for figure in (*SHOWN, *SHOWN_TOO) if figure not in wanted}
    found = []
    for figure, limit in wanted.items():
        for name, old, new in _pairs(before, after, figure):
            found.append(Comparison(name, figure, old, new, limit))
    return found


def missing(comparisons: Sequence[Comparison], ratios: Mapping[str, float]) -> list[str]:
    """Return the figures with a limit that the reports do not share, so that a comparison of nothing does not pass."""
    have = {comparison.figure for comparison in comparisons}
    return [figure for figure in ratios if figure not in have]


def bottleneck(run: StageRun, segments: Sequence[SegmentResult]) -> list[str]:
    """Return sentences that say why the generator itself may have limited a stage; empty if it did not."""
    found = []
    late = max((segment.mean("p99_late_ms") or 0.0 for segment in segments), default=0.0)
    if late > LATE_MS:
        found.append(f"{run.stage.name}: 1 % of the requests were sent {late:.0f} ms or more after they were due")
    for worker, cores in enumerate(run.generator.cpu_cores):
        if cores > BUSY_CORES:
            found.append(f"{run.stage.name}: worker {worker + 1} of the generator used {cores:.2f} of its one core")
    if run.generator.delayed:
        found.append(f"{run.stage.name}: {run.generator.delayed} requests waited because max_in_flight was reached")
    return found


def _pairs(before: Report, after: Report, figure: str) -> Iterator[tuple[str, Estimate, Estimate]]:
    if figure in SWEEP_FIGURES:
        old, new = (before.sweep or {}).get(figure), (after.sweep or {}).get(figure)
        if old is not None and new is not None:
            yield "sweep", Estimate(old, None), Estimate(new, None)
        return
    assert figure in FIGURES
    earlier = {(segment.stage, segment.name): segment for segment in before.segments}
    for segment in after.segments:
        match = earlier.get((segment.stage, segment.name))
        was, now = match and match.estimate(figure), segment.estimate(figure)
        if was and now:
            yield segment.name, was, now
