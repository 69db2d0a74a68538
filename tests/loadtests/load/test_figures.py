from __future__ import annotations

import pytest

from loadtests.load.figures import errors, estimate, measure, meets, most_at_once, percentile
from loadtests.load.record import HUNG_UP
from loadtests.load.scenario import Objective
from tests.loadtests.load.records import record

OBJECTIVE = Objective(ttft_ms=200, itl_ms=50)


def test_a_window_takes_latencies_of_what_was_due_and_tokens_of_what_came() -> None:
    """An answer from before counts with the tokens that came in it, one that ends behind it with its latency."""
    records = [
        record(-1, [0.5, 1.5], tokens=4),  # due before: half of its tokens count
        record(1, [1.1, 1.14, 1.18]),
        record(9, [9.5, 11.0]),  # half of its tokens come too late
    ]
    found = measure(records, 1, 10, OBJECTIVE)
    assert (found["requests"], found["completed"], found["ended"], found["failed"]) == (2, 2, 2, 0)
    assert found["request_throughput"] == pytest.approx(2 / 9)
    assert found["output_throughput"] == pytest.approx((2 + 3 + 1) / 9)
    assert found["mean_ttft_ms"] == pytest.approx((100 + 500) / 2)
    assert found["p99_itl_ms"] == pytest.approx(1500)
    assert found["median_tpot_ms"] == pytest.approx((40 + 1500) / 2)
    assert found["p99_e2el_ms"] == pytest.approx(2000)
    assert (found["total_output_tokens"], found["total_input_tokens"]) == (5, 20)
    assert found["total_token_throughput"] == pytest.approx((6 + 20) / 9)


def test_goodput_counts_what_reaches_the_objective() -> None:
    """In time for its first token and between its tokens; failures count against it, clients that hung up do not."""
    records = [
        record(0, [0.1, 0.14]),
        record(1, [1.3, 1.34]),  # late
        record(2, [2.1, 2.2]),  # slow
        record(3, [], outcome="HTTP 500"),
        record(4, [4.1], outcome=HUNG_UP),
    ]
    found = measure(records, 0, 10, OBJECTIVE)
    assert (found["request_goodput"], found["slo_attainment"], found["error_ratio"]) == (0.1, 0.25, 0.2)
    assert (found["hung_up"], found["failed"]) == (1, 1)
    assert not meets(records[0], Objective(e2e_ms=100))
    whole = record(0, [], ended=3, tokens=5)
    assert meets(whole, OBJECTIVE)  # it was not streamed: its end is all that it has
    assert not meets(whole, Objective(e2e_ms=2999))


def test_waiting_in_the_generator_counts() -> None:
    """A request that was sent late is measured from when it was due (coordinated omission), and the delay is told."""
    late = record(1, [3.0], sent=2.5)
    found = measure([late], 0, 10, OBJECTIVE)
    assert (found["mean_ttft_ms"], found["p99_late_ms"]) == (2000, 1500)
    assert measure([late._replace(scheduled=False)], 0, 10, OBJECTIVE)["p99_late_ms"] is None


def test_nothing_measured_is_none() -> None:
    """Never zero milliseconds."""
    found = measure([], 0, 10, OBJECTIVE)
    assert (found["request_throughput"], found["output_throughput"]) == (0, 0)
    assert found["mean_ttft_ms"] is found["slo_attainment"] is found["error_ratio"] is None


def test_errors_are_counted_by_kind() -> None:
    """With an example of each."""
    records = [
        record(0, [], outcome="HTTP 429", detail="slow down"),
        record(1, [], outcome="HTTP 429", detail="again"),
        record(2, [], outcome="timeout", detail="no answer"),
        record(3, [3.1]),
        record(20, [], outcome="connection", detail="outside the window"),
    ]
    assert errors(records, 0, 10) == ({"HTTP 429": 2, "timeout": 1}, ["timeout: no answer", "HTTP 429: slow down"])


def test_the_most_at_once_is_found() -> None:
    """One that ends when another begins does not overlap it."""
    records = [record(0, [2.0]), record(1, [3.0]), record(2, [4.0]), record(9, [12.0])]
    assert most_at_once(records, 0, 10) == 2
    assert most_at_once(records, 3.5, 5) == 1
    assert most_at_once(records, 5, 8) == 0


def test_percentiles_are_values_that_were_seen() -> None:
    """Nearest rank: no interpolation between a few slow answers."""
    assert percentile([], 50) is None
    assert percentile([3.0], 95) == 3
    assert percentile([4, 1, 3, 2], 50) == 2
    assert percentile(range(1, 101), 95) == 95


def test_repetitions_give_a_confidence_interval() -> None:
    """Student's t: of 1, 2 and 3 the mean is 2 and the half-width 4.303 / sqrt(3)."""
    found = estimate([1.0, 2.0, 3.0, None])
    assert found
    assert (found.mean, found.half_width) == (2.0, pytest.approx(2.484, abs=1e-3))
    assert found.interval == pytest.approx((-0.484, 4.484), abs=1e-3)
    alone = estimate([5.0])
    assert alone
    assert (alone.half_width, alone.interval) == (None, (5.0, 5.0))
    assert estimate([None]) is None
    many = estimate([float(number % 2) for number in range(100)])
    assert many
    assert many.half_width == pytest.approx(1.96 * 0.5025 / 10, rel=0.01)
