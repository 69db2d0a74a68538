from __future__ import annotations

import pytest

from loadtests.load.report import GeneratorUsage, segment_results
from loadtests.load.verdict import bottleneck, broken_limits, compare, missing
from tests.loadtests.load.records import record, report, scenario, stage_run


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"p99_ttft_ms": 200}, None),
        ({"p99_ttft_ms": 199}, "p99_ttft_ms 200 is above its limit 199"),
        ({"output_throughput": 50}, None),
        ({"output_throughput": 51}, "output_throughput 50 is below its limit 51"),
        ({"p99_itl_ms": 10}, "p99_itl_ms was not measured"),
        ({"error_ratio": 0}, None),
    ],
)
def test_a_limit_that_is_broken_is_named(limits: dict[str, float], message: str | None) -> None:
    """A run at its limit passes; what was not measured does not."""
    found = broken_limits(report({"p99_ttft_ms": 200, "output_throughput": 50, "error_ratio": 0.0}), limits)
    assert [message in sentence for sentence in found if message] == ([True] if message else [])
    assert bool(found) == bool(message)


def test_a_run_without_requests_does_not_pass() -> None:
    """Whatever its limits are."""
    assert broken_limits(report({"requests": 0.0}), {}) == ["no request was made"]


def test_the_limits_of_a_sweep_are_of_all_of_it() -> None:
    """Its greatest rate that is good."""
    swept = report({}, sweep={"saturation_rate": 9.0, "goodput_rate": None})
    assert broken_limits(swept, {"saturation_rate": 9}) == []
    assert "not measured" in broken_limits(swept, {"goodput_rate": 1})[0]


@pytest.mark.parametrize(
    ("before", "after", "ratios", "passed"),
    [
        ([100], [110], {"p99_ttft_ms": 1.2}, True),
        ([100], [130], {"p99_ttft_ms": 1.2}, False),
        ([100, 101, 99], [130, 131, 129], {"p99_ttft_ms": 1.2}, False),
        ([100, 150, 50], [130, 180, 80], {"p99_ttft_ms": 1.2}, True),  # the intervals overlap: nothing is known
        ([100], [50], {"p99_ttft_ms": 1.2}, True),
        ([0], [50], {"p99_ttft_ms": 1.2}, True),
    ],
)
def test_a_comparison_fails_where_a_ratio_is_worse(
    before: list[float], after: list[float], ratios: dict[str, float], passed: bool
) -> None:
    """Unless the confidence intervals of the repetitions overlap."""
    reports = [report(*({"p99_ttft_ms": value} for value in values)) for values in (before, after)]
    (found,) = compare(reports[0], reports[1], ratios)
    assert found.passed is passed
    assert missing([found], ratios) == []


def test_less_throughput_is_worse() -> None:
    """For figures of which more is better the limit is the least ratio."""
    before, after = report({"output_throughput": 100.0}), report({"output_throughput": 94.0})
    (found,) = compare(before, after, {"output_throughput": 0.95})
    assert (found.ratio, found.passed) == (0.94, False)
    assert compare(before, after, {"output_throughput": 0.9})[0].passed


def test_reports_without_a_common_stage_do_not_pass() -> None:
    """A comparison of nothing says so."""
    before, after = report({"p99_ttft_ms": 1.0}, name="1/s"), report({"p99_ttft_ms": 1.0}, name="2/s")
    assert missing(compare(before, after, {"p99_ttft_ms": 1.1}), {"p99_ttft_ms": 1.1}) == ["p99_ttft_ms"]


def test_sweeps_are_compared_by_their_rates() -> None:
    """The stages of two sweeps differ."""
    before = report({}, sweep={"saturation_rate": 10.0, "goodput_rate": 4.0})
    after = report({}, sweep={"saturation_rate": 8.0, "goodput_rate": 4.0})
    found = compare(before, after, {"saturation_rate": 0.9, "goodput_rate": 0.9})
    assert [(item.figure, item.passed) for item in found] == [("saturation_rate", False), ("goodput_rate", True)]


def test_the_generator_says_when_it_was_the_bottleneck() -> None:
    """By requests that were late, by a processor that was busy, by a limit that was reached."""
    on_time = stage_run([record(1, [1.1], sent=1.005)])
    assert bottleneck(on_time, segment_results([on_time], scenario())) == []
    late = stage_run([record(1, [1.1], sent=1.02)], generator=GeneratorUsage(cpu_cores=[0.5, 0.95], delayed=3))
    found = bottleneck(late, segment_results([late], scenario()))
    assert len(found) == 3
    assert "20 ms" in found[0]
    assert "worker 2" in found[1]
    assert "max_in_flight" in found[2]
