"""runtime.rate_limits.gcra: no window ever sees more than the limit, whatever comes when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.rate_limits.factory import open_limits
from runtime.rate_limits.gcra import Quota, take
from runtime.rate_limits.memory import MemoryLimiter, MemoryLimits
from runtime.settings import Settings

QUOTAS = st.one_of(
    st.just(Quota(1, 1)),
    st.integers(2, 10_000_000).flatmap(lambda limit: st.builds(Quota, st.just(limit), st.integers(1, limit - 1))),
    st.builds(Quota.share, st.integers(1, 300), st.floats(0.01, 0.95), st.sampled_from([1.0, 60.0, 3600.0])),
)
BOOTED = st.sampled_from([0.0, 1.5, 86_400.25, 1e7])  # what the monotonic clock may say at first


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Spent(NamedTuple):
    """Units, and the two moments between which they were used."""

    since: float
    until: float
    units: int


def later(now: float, seconds: float) -> float:
    """The clock's next reading that is so much later; what it rounds down would be early."""
    then = now + seconds
    while then - now < seconds:
        then = math.nextafter(then, math.inf)
    return then


def most_in_a_window(log: Sequence[Spent], window: float) -> int:
    """The most units that can have been used in any window [t, t + window), worked out by trying all that matter.

    A unit is used at whatever moment between its two is worst; a window that begins where something ends loses nothing.
    """
    short = window * (1 - 1e-7)  # the clocks are floats: who came a billionth before a window's end came at its end

    def within(first: Spent) -> int:
        return sum(one.units for one in log if one.until >= first.until and one.since < first.until + short)

    return max(map(within, log), default=0)


def test_the_oracle_counts() -> None:
    """By hand: of three uses two lie in one window, and a long one lies in each window that it touches."""
    log = [Spent(0, 0, 1), Spent(5, 5, 2), Spent(11, 11, 4)]
    assert most_in_a_window(log, 10) == 6
    assert most_in_a_window([*log, Spent(0, 20, 8)], 10) == 14
    assert most_in_a_window(log, 12) == 7


@settings(max_examples=500)
@given(
    QUOTAS,
    BOOTED,
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 8)), max_size=150),
    st.booleans(),
)
def test_no_window_sees_more_than_the_limit(
    quota: Quota, now: float, arrivals: list[tuple[float, int]], impatient: bool
) -> None:
    """Over random arrivals and costs, compared with a log of all that was let through; and whoever waits gets in.

    Gaps are as long as the pace, or, for the impatient, a tiny part of it.
    """
    level, last, log = 0.0, now, list[Spent]()
    for gap, cost in arrivals:
        now += gap * quota.interval * (0.01 if impatient else 1)
        level, decision = take(level, now - last, quota, cost)
        last = now
        if not decision.admitted:
            assert decision.remaining < cost
            assert (decision.retry_after == math.inf) == (cost > quota.burst)
            if cost > quota.burst:
                continue
            now = later(now, decision.retry_after)
            level, decision = take(level, now - last, quota, cost)
            last = now
        assert decision.admitted
        assert decision.retry_after == 0
        log.append(Spent(now, now, cost))
    assert most_in_a_window(log, quota.window) <= quota.limit


@settings(max_examples=500)
@given(
    QUOTAS,
    BOOTED,
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(0, 3), st.booleans()), max_size=120
    ),
)
def test_no_window_sees_more_than_the_limit_where_costs_are_settled(
    quota: Quota, now: float, steps: list[tuple[float, float, float, int, bool]]
) -> None:
    """Holds and settlements in any order and at any time: wherever between the two a unit is thought to be used."""
    clock = Clock(now)
    limiter = MemoryLimiter(10, clock)
    log: list[Spent] = []
    running: list[tuple[float, int]] = []

    def commit(number: int, share: float) -> None:
        since, held = running.pop(number)
        used = round(held * share)
        limiter.commit("x", quota, held, used)
        log.append(Spent(since, clock.now, used))

    for gap, size, share, which, hasty in steps:
        clock.now += gap * quota.window / (100 if hasty else 2)
        if running and which < 2:
            commit(which % len(running), share)
        units = max(1, round(size * quota.burst))
        if limiter.reserve("x", quota, units).admitted:
            running.append((clock.now, units))
    while running:
        commit(0, 1.0)
    assert most_in_a_window(log, quota.window) <= quota.limit


@given(QUOTAS, BOOTED, st.integers(1, 300))
def test_the_even_pace_is_never_refused(quota: Quota, now: float, count: int) -> None:
    """A client that comes once in each interval always gets in, from the first time on."""
    level, last = 0.0, now
    for _ in range(count):
        level, decision = take(level, now - last, quota)
        assert decision.admitted
        last, now = now, later(now, quota.interval)


@given(QUOTAS)
def test_a_burst_then_the_pace(quota: Quota) -> None:
    """The burst is there at once and not one more; then one for each interval that is waited."""
    assert not take(0, 0, quota, quota.burst + 1)[1].admitted
    level, decision = take(0, 0, quota, quota.burst)
    assert (decision.admitted, decision.remaining) == (True, 0)
    assert decision.reset == pytest.approx(quota.burst * quota.interval)
    same, refused = take(level, 0, quota)
    assert (refused.admitted, same) == (False, level)
    assert refused.retry_after == pytest.approx(quota.interval)
    assert not take(level, 0.999 * quota.interval, quota)[1].admitted
    assert take(level, quota.interval, quota)[1].admitted


def test_nothing_is_lost_beside_a_clock_that_reads_high() -> None:
    """After half a year of uptime, charging units one by one comes to what charging them at once does."""
    quota, clock = Quota(1_000_000_000, 500_000_000), Clock(1.5e7)
    limiter = MemoryLimiter(1, clock)
    for _ in range(100_000):
        limiter.take("x", quota)
    assert limiter.take("x", quota, 0).remaining == 500_000_000 - 100_000


@pytest.mark.parametrize(
    ("limit", "burst", "interval"),
    [(1, 1, 60), (2, 1, 60), (120, 60, 1), (60, 59, 60), (60, 1, 60 / 59)],
)
def test_interval(limit: int, burst: int, interval: float) -> None:
    """What is left of the limit beside the burst is spread over the window; a limit of one is one a window."""
    assert Quota(limit, burst).interval == pytest.approx(interval)


@pytest.mark.parametrize(("limit", "burst"), [(0, 1), (1, 0), (1, 2), (5, 5), (5, 6), (-1, 1)])
def test_impossible_quotas(limit: int, burst: int) -> None:
    """A burst of nothing, or of the whole limit, is refused with both numbers."""
    with pytest.raises(ValueError, match=rf"limit of {limit}, not {burst}"):
        Quota(limit, burst)


@given(st.integers(1, 10**9), st.floats(0.001, 0.95))
def test_share(limit: int, share: float) -> None:
    """Whatever the settings say comes to a quota, whose burst is that share if there is room for it."""
    quota = Quota.share(limit, share)
    assert quota.limit == limit
    assert quota.burst == max(1, math.floor(limit * share))


@pytest.mark.parametrize("cost", [0, 1])
def test_looking_costs_nothing(cost: int) -> None:
    """A cost of 0 tells how it stands, and is never refused."""
    quota = Quota(120, 60)
    limiter = MemoryLimiter(10, Clock(5.0))
    for _ in range(60):
        limiter.take("x", quota)
    looked = limiter.take("x", quota, cost)
    assert (looked.admitted, looked.remaining, looked.reset) == (not cost, 0, 60)
    assert limiter.take("x", quota).retry_after == pytest.approx(1)


def test_held_units_are_not_paid_off() -> None:
    """However long something runs, what is held for it cannot be had twice; what it did not use is there at its end.

    Were held units charged at once, time would pay them off, and giving them back would then be a gift.
    """
    clock, quota = Clock(0.0), Quota(120, 60)
    limiter = MemoryLimiter(10, clock)
    assert limiter.reserve("x", quota, 60).admitted
    clock.now = 3600.0
    refused = limiter.reserve("x", quota, 1)
    assert (refused.admitted, refused.remaining, refused.retry_after) == (False, 0, 0)
    assert limiter.take("x", quota, 0).remaining == 0
    assert not limiter.take("x", quota).admitted
    assert limiter.commit("x", quota, 60, 20).remaining == 40
    assert limiter.reserve("x", quota, 40).admitted
    assert not limiter.reserve("x", quota, 1).admitted


@pytest.mark.parametrize(("used", "charged"), [(0, 0), (-5, 0), (7, 7), (30, 30), (31, 30)])
def test_settlement(used: int, charged: int) -> None:
    """What was used is charged; never less than nothing and never more than was held."""
    quota = Quota(120, 60)
    limiter = MemoryLimiter(10, Clock(0.0))
    limiter.reserve("x", quota, 30)
    assert limiter.commit("x", quota, 30, used).remaining == 60 - charged


def test_who_was_seen_least_recently_is_forgotten_first() -> None:
    """Memory is bounded however many clients there are; only who owes something is remembered at all."""
    clock, quota = Clock(0.0), Quota(120, 1)
    limiter = MemoryLimiter(3, clock)
    for name in ("a", "b", "c", "a", "d"):
        limiter.take(name, quota)
    assert len(limiter) == 3
    assert [limiter.take(name, quota, 0).remaining for name in "abcd"] == [0, 1, 0, 0]
    clock.now = 1000.0
    for name in "acd":
        limiter.take(name, quota, 0)
    assert len(limiter) == 0


async def test_what_is_held_is_never_forgotten() -> None:
    """Crowding a client out of the memory does not give it what it holds, nor twice when that ends."""
    clock = Clock(0.0)
    limits, quota = MemoryLimits(3, clock), Quota(120, 60)
    decision, commit = await limits.reserve("x", quota, 50)
    assert decision.remaining == 10
    assert commit is not None
    for number in range(10):
        await limits.admit(f"crowd-{number}", quota, quota)
    assert len(limits) == 3
    assert (await limits.reserve("x", quota, 11))[1] is None
    after = await commit(5)
    assert after is not None
    assert after.remaining == 55


def test_settings_choose() -> None:
    """RATE_LIMIT_STORE names the place; opening Redis touches no network."""
    assert isinstance(open_limits(Settings.load()), MemoryLimits)
    chosen = open_limits(Settings.load(rate_limit_store="redis", redis_url="redis://127.0.0.1:1/0"))
    assert type(chosen).__name__ == "RedisLimits"
