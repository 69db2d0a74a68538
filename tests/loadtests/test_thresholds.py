from __future__ import annotations

import pytest

from loadtests.answers import RecordedAnswer
from loadtests.thresholds import Thresholds, broken, figures, percentile, window


def answer(began: float, first: float | None, seconds: float, tokens: int) -> RecordedAnswer:
    return RecordedAnswer(began, first, seconds, 10, tokens, "")


TWO = [answer(0, 1, 5, 5), answer(1, 2, 9, 15)]  # 20 tokens in 10 s


def test_a_run_is_all_tokens_over_the_time_they_took() -> None:
    """The aggregate of users who ask at the same time, not the mean of their own rates."""
    run = figures(TWO, requests=4, failures=1)
    assert (run.completion_tokens, run.seconds, run.tokens_per_second) == (20, 10, 2)
    assert (run.ttft_p50_ms, run.ttft_p95_ms, run.inter_token_p50_ms) == (1000, 2000, 500)
    assert (run.requests, run.failures, run.answers, run.prompt_tokens_p50) == (4, 1, 2, 10)


def test_a_run_without_answers_has_no_figures() -> None:
    """Nothing measured is None, never zero milliseconds."""
    run = figures([], requests=3, failures=3)
    assert (run.tokens_per_second, run.ttft_p50_ms, run.inter_token_p50_ms) == (0, None, None)


def test_a_window_takes_the_part_of_an_answer_that_came_in_it() -> None:
    """The first answer's tokens come from 1 to 5, the second's from 3 to 10: half of the one and 2/7 of the other."""
    found = window(TWO, 3, 5)
    assert found.tokens_per_second == pytest.approx((2.5 + 15 * 2 / 7) / 2, abs=0.01)
    assert (found.completion_tokens, found.requests) == (7, 0)
    assert window(TWO, 0, 10).completion_tokens == 20
    assert window(TWO, 20, 30).completion_tokens == 0


def test_a_window_counts_the_waits_of_the_requests_that_began_in_it() -> None:
    """Else a stage would show the waits of the one before."""
    assert window(TWO, 0.5, 10).ttft_p50_ms == 2000


@pytest.mark.parametrize(
    ("limits", "requests", "failures", "message"),
    [
        (Thresholds(), 100, 1, None),
        (Thresholds(), 100, 2, "failure ratio 0.0200"),
        (Thresholds(max_failure_ratio=0), 1000, 1, "failure ratio"),
        (Thresholds(), 0, 0, "no request"),
        (Thresholds(max_ttft_p95_ms=2000), 4, 0, None),
        (Thresholds(max_ttft_p95_ms=1999), 4, 0, "TTFT p95 2000 ms"),
        (Thresholds(min_tokens_per_second=2), 4, 0, None),
        (Thresholds(min_tokens_per_second=2.1), 4, 0, "2 tokens per second"),
    ],
)
def test_a_limit_that_is_crossed_is_named(
    limits: Thresholds, requests: int, failures: int, message: str | None
) -> None:
    """A run at its limit passes; timings are judged only where a limit is given."""
    found = broken(figures(TWO, requests, failures), limits)
    assert [message in sentence for sentence in found if message] == ([True] if message else [])
    assert bool(found) == bool(message)


def test_a_timing_that_was_not_measured_is_not_good() -> None:
    """A limit on the time to first token fails a run in which nothing was streamed."""
    whole = [answer(0, None, 2, 8)]
    assert "no streamed answer" in broken(figures(whole, 1, 0), Thresholds(max_ttft_p95_ms=1))[0]


def test_percentiles_are_values_that_were_seen() -> None:
    """Nearest rank, as Locust's own rows: no interpolation between a few slow answers."""
    assert percentile([], 50) is None
    assert percentile([3.0], 95) == 3
    assert percentile([4, 1, 3, 2], 50) == 2
    assert percentile(range(1, 101), 95) == 95
