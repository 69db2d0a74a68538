"""Computes the figures of a stage from its requests. Names and meanings are those of ``vllm bench serve``."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtests.load.figure_names import PERCENTILES
from loadtests.load.record import HUNG_UP, OK, LoadRecord
from loadtests.load.scenario import Objective

Values = dict[str, float | None]
"""Figures by name; None: there was nothing to measure."""

# Two-sided 95 % quantiles of Student's t distribution for 1 to 30 degrees of freedom; beyond, the normal one is near.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Estimate:
    """A mean over repetitions with the half-width of its 95 % confidence interval."""

    mean: float
    half_width: float | None
    """None: there was one repetition only."""

    @property
    def interval(self) -> tuple[float, float]:
        """The interval; without a width it is the mean alone."""
        return self.mean - (self.half_width or 0.0), self.mean + (self.half_width or 0.0)


def measure(records: Sequence[LoadRecord], start: float, end: float, objective: Objective) -> Values:
    """Return the figures of a window.

    Latencies and errors are of the requests that were due in it; throughput is what came in it, so that neither an
    answer's beginning before the window nor the wait for the last answers after it counts.

    Args:
        records: all requests of the stage.
        start: the window's start, in seconds from the stage's.
        end: its end.
        objective: what a good request reaches.
    """
    length = end - start
    due = [record for record in records if start <= record.due < end]
    answered = [record for record in due if record.outcome == OK]
    came = [record for record in records if record.outcome == OK and start <= record.ended < end]
    good = sum(meets(record, objective) for record in answered)
    judged = len(due) - sum(record.outcome == HUNG_UP for record in due)
    output = sum(record.tokens_between(start, end) for record in records if not record.failed)
    read = sum(record.prompt_tokens for record in records if record.outcome == OK and _began_in(record, start, end))
    found: Values = {
        "duration": length,
        "requests": len(due),
        "completed": len(answered),
        "failed": sum(record.failed for record in due),
        "hung_up": len(due) - judged,
        "ended": len(came),
        "error_ratio": sum(record.failed for record in due) / len(due) if due else None,
        "offered_rate": len(due) / length,
        "request_throughput": len(came) / length,
        "request_goodput": sum(meets(record, objective) for record in came) / length,
        "slo_attainment": good / judged if judged else None,
        "output_throughput": output / length,
        "total_token_throughput": (output + read) / length,
        "total_input_tokens": sum(record.prompt_tokens for record in answered),
        "total_output_tokens": sum(record.completion_tokens for record in answered),
        "max_concurrent_requests": most_at_once(records, start, end),
    }
    found |= _latency("ttft", (record.ttft for record in due if not record.failed))
    found |= _latency("tpot", (record.tpot for record in answered))
    found |= _latency("itl", (gap for record in due if not record.failed for gap in record.gaps()))
    found |= _latency("e2el", (record.e2e for record in answered))
    late = sorted(record.sent - record.due for record in due if record.scheduled)
    found["p99_late_ms"] = _ms(percentile(late, 99))
    return found


def errors(records: Sequence[LoadRecord], start: float, end: float) -> tuple[dict[str, int], list[str]]:
    """Return how many requests due in a window failed, by kind, and an example of each kind."""
    failed = [record for record in records if record.failed and start <= record.due < end]
    examples = {record.outcome: record.detail for record in reversed(failed)}
    return dict(Counter(record.outcome for record in failed)), [f"{kind}: {text}" for kind, text in examples.items()]


def meets(record: LoadRecord, objective: Objective) -> bool:
    """Return whether an answered request reaches an objective; what was not streamed has its end only."""
    measured = ((record.ttft, objective.ttft_ms), (record.tpot, objective.itl_ms), (record.e2e, objective.e2e_ms))
    return record.outcome == OK and all(
        value is None or limit is None or value * 1000 <= limit for value, limit in measured
    )


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the nearest-rank percentile: the least value that ``percent`` % do not exceed; None if empty."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)] if values else None


def most_at_once(records: Iterable[LoadRecord], start: float, end: float) -> int:
    """Return the greatest number of requests that were running at one moment of a window."""
    changes: list[tuple[float, int]] = []
    for record in records:
        if record.sent < end and record.ended > start:
            changes += [(max(record.sent, start), 1), (min(record.ended, end), -1)]
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """Return the mean of repetitions and its 95 % confidence interval by Student's t; None if nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if len(known) == 1:
        return Estimate(known[0], None)
    quantile = _T95[len(known) - 2] if len(known) - 2 < len(_T95) else 1.96
    return Estimate(statistics.fmean(known), quantile * statistics.stdev(known) / math.sqrt(len(known)))


def _began_in(record: LoadRecord, start: float, end: float) -> bool:
    """Return whether its prompt was read in a window: its first text came then."""
    return start <= (record.times[0] if record.times else record.ended) < end


def _latency(name: str, values: Iterable[float | None]) -> Values:
    known = sorted(value for value in values if value is not None)
    found: Values = {
        f"mean_{name}_ms": _ms(statistics.fmean(known) if known else None),
        f"median_{name}_ms": _ms(statistics.median(known) if known else None),
        f"std_{name}_ms": _ms(statistics.pstdev(known) if known else None),
    }
    return found | {f"p{percent}_{name}_ms": _ms(percentile(known, percent)) for percent in PERCENTILES}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
