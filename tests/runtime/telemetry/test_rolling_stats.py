"""Counts and sliding windows of one model, on a clock that the test holds."""

from __future__ import annotations

import pytest

from runtime.status import EngineStats, Percentiles
from runtime.telemetry.rolling_stats import GAP_BOUNDS, RollingStats


class Hands:
    """A clock that is moved by hand."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_nothing_yet() -> None:
    """A model that did nothing has zeros, and no spreads."""
    assert RollingStats(Hands()).read() == EngineStats()


def test_counts() -> None:
    """What is told is what is read."""
    stats = RollingStats(Hands())
    stats.busy(3, 2, 1, 0.5)
    stats.prompt(10, 4)
    stats.prompt(5, 0)
    for how in ("finished", "finished", "failed", "cancelled", "rejected"):
        stats.ended(how)  # type: ignore[arg-type]
    read = stats.read()
    assert (read.running, read.waiting, read.queued, read.kv_usage) == (3, 2, 1, 0.5)
    assert (read.prompt_tokens, read.cached_tokens) == (15, 4)
    assert (read.finished, read.failed, read.cancelled, read.rejected) == (2, 1, 1, 1)


def test_tokens_per_second_is_of_the_last_ten_seconds() -> None:
    """A steady rate is read as it is; it falls to nothing within about ten seconds of the last token."""
    clock = Hands()
    stats = RollingStats(clock)
    for tick in range(200):  # 20 tokens a second
        clock.now = 1000 + tick / 20
        stats.token(clock.now, None)
    clock.now = 1010.0
    assert stats.read().tokens_per_second == pytest.approx(20)
    clock.now = 1015.0
    assert stats.read().tokens_per_second == pytest.approx(10)
    clock.now = 1021.0
    assert stats.read().tokens_per_second == 0
    assert stats.read().generated_tokens == 200


def test_a_pause_is_not_forgotten() -> None:
    """Seconds without a token count as such, and what lay before a long pause does not come back."""
    clock = Hands()
    stats = RollingStats(clock)
    for now in (1000.0, 1100.0, 1108.5):
        clock.now = now
        stats.token(now, None)
    clock.now = 1110.0
    assert stats.read().tokens_per_second == pytest.approx(2 / 10)


def test_a_late_token_counts_too() -> None:
    """Streams on several threads may tell of their tokens a little out of order."""
    clock = Hands(1001.0)
    stats = RollingStats(clock)
    stats.token(1001.0, None)
    stats.token(1000.9, None)
    assert stats.read().tokens_per_second == pytest.approx(2 / 10)


def test_gaps_fall_into_groups() -> None:
    """A bound belongs to its own group, as in Prometheus; what is above all bounds has a group of its own."""
    stats = RollingStats(Hands())
    for gap in (None, 0.0, 0.001, 0.0011, 99.0):
        stats.token(1000.0, gap)
    counts, seconds = stats.gaps()
    assert len(counts) == len(GAP_BOUNDS) + 1
    assert (counts[0], counts[1], counts[-1], sum(counts)) == (2, 1, 1, 4)
    assert seconds == pytest.approx(99.0021)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([7.0], Percentiles(7.0, 7.0)),
        ([2.0, 1.0], Percentiles(1.0, 2.0)),
        ([float(i) for i in range(1, 101)], Percentiles(50.0, 95.0)),
        ([float(i) for i in range(1, 21)], Percentiles(10.0, 19.0)),
        ([1.0] * 300 + [9.0] * 256, Percentiles(9.0, 9.0)),
    ],
    ids=["one", "two", "hundred", "twenty", "the last 256"],
)
def test_spreads(seconds: list[float], expected: Percentiles) -> None:
    """The middle one and nearly the worst, by nearest rank, of the last requests."""
    stats = RollingStats(Hands())
    for value in seconds:
        stats.first_token(value)
        stats.pace(value / 8)
    read = stats.read()
    assert read.time_to_first_token == expected
    assert read.inter_token_latency == Percentiles(expected.p50 / 8, expected.p95 / 8)


def test_old_requests_drop_out() -> None:
    """What is older than five minutes is of no interest any more."""
    clock = Hands()
    stats = RollingStats(clock)
    stats.first_token(5.0)
    clock.now += 200
    stats.first_token(1.0)
    assert stats.read().time_to_first_token == Percentiles(1.0, 5.0)
    clock.now += 101
    assert stats.read().time_to_first_token == Percentiles(1.0, 1.0)
    clock.now += 200
    assert stats.read().time_to_first_token is None
