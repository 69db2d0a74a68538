"""Computes a run's statistics and compares them with its limits. Pure functions over answers and counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.answers import RecordedAnswer


@dataclass(frozen=True)
class Thresholds:
    """The limits that fail a run. Timings have no limit unless one is given, because they depend on the machine."""

    max_failure_ratio: float = 0.01
    max_ttft_p95_ms: float | None = None
    min_tokens_per_second: float | None = None


@dataclass(frozen=True)
class Figures:
    """The statistics of a run or of a time window in it. None: there was nothing to measure."""

    requests: int
    failures: int
    answers: int
    prompt_tokens_p50: float | None
    completion_tokens: int
    seconds: float
    tokens_per_second: float
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    inter_token_p50_ms: float | None


def figures(answers: Sequence[RecordedAnswer], requests: int, failures: int) -> Figures:
    """Return a whole run's statistics, over the time from the first request to the last answer's end."""
    start = min((answer.began for answer in answers), default=0.0)
    end = max((answer.began + answer.seconds for answer in answers), default=0.0)
    return _figures(answers, start, end, sum(answer.completion_tokens for answer in answers), requests, failures)


def window(answers: Sequence[RecordedAnswer], start: float, end: float) -> Figures:
    """Return statistics between two moments: tokens generated, and latencies of the requests that started in between.

    An answer's tokens are assumed to be evenly spread from its first token to its end, so that answers which cross the
    window's boundary count in part; otherwise short windows and long answers would give too low a throughput.
    """
    tokens = sum(answer.completion_tokens * _share(answer, start, end) for answer in answers)
    begun = [answer for answer in answers if start <= answer.began < end]
    return _figures(begun, start, end, tokens, len(begun), 0)


def broken(figures: Figures, limits: Thresholds) -> list[str]:
    """Return a sentence for each limit that a run exceeded; empty if it passed."""
    if not figures.requests:
        return ["no request was made"]
    found = []
    if (ratio := figures.failures / figures.requests) > limits.max_failure_ratio:
        found.append(
            f"failure ratio {ratio:.4f} ({figures.failures} of {figures.requests}) "
            f"is above --max-failure-ratio {limits.max_failure_ratio:g}"
        )
    if limits.max_ttft_p95_ms is not None:
        if figures.ttft_p95_ms is None:
            found.append("--max-ttft-p95-ms is given but no streamed answer was measured")
        elif figures.ttft_p95_ms > limits.max_ttft_p95_ms:
            found.append(f"TTFT p95 {figures.ttft_p95_ms:g} ms is above --max-ttft-p95-ms {limits.max_ttft_p95_ms:g}")
    if limits.min_tokens_per_second is not None and figures.tokens_per_second < limits.min_tokens_per_second:
        found.append(
            f"{figures.tokens_per_second:g} tokens per second are below "
            f"--min-tokens-per-second {limits.min_tokens_per_second:g}"
        )
    return found


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the nearest-rank percentile: the least value that ``percent`` % do not exceed; None if empty."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)] if values else None


def _share(answer: RecordedAnswer, start: float, end: float) -> float:
    came, ended = answer.began + (answer.first or 0.0), answer.began + answer.seconds
    if ended <= came:
        return float(start <= ended < end)
    return max(0.0, min(ended, end) - max(came, start)) / (ended - came)


def _figures(
    answers: Sequence[RecordedAnswer], start: float, end: float, tokens: float, requests: int, failures: int
) -> Figures:
    firsts = [answer.first for answer in answers if answer.first is not None]
    between = [gap for answer in answers if (gap := answer.inter_token_seconds) is not None]
    return Figures(
        requests=requests,
        failures=failures,
        answers=len(answers),
        prompt_tokens_p50=percentile([answer.prompt_tokens for answer in answers], 50),
        completion_tokens=round(tokens),
        seconds=round(end - start, 3),
        tokens_per_second=round(tokens / (end - start), 2) if end > start else 0.0,
        ttft_p50_ms=_milliseconds(percentile(firsts, 50)),
        ttft_p95_ms=_milliseconds(percentile(firsts, 95)),
        inter_token_p50_ms=_milliseconds(percentile(between, 50)),
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
