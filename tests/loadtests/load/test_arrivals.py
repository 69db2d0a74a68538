from __future__ import annotations

import statistics
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from loadtests.load.arrivals import Arrivals, LoadStage, rate_stage

ARRIVALS: TypeAdapter[Any] = TypeAdapter(Arrivals)


def stages(warmup: float = 0.0, **fields: Any) -> list[LoadStage]:
    found: list[LoadStage] = ARRIVALS.validate_python(fields).stages(warmup)
    return found


def test_a_closed_loop_has_a_stage_per_number_of_users() -> None:
    """Each is warmed up."""
    found = stages(2.0, type="closed", users=[1, 8], seconds=10)
    assert [(stage.users, stage.seconds) for stage in found] == [(1, 12.0), (8, 12.0)]
    assert [(start, end) for _, start, end in found[0].windows()] == [(2.0, 12.0)]


def test_constant_arrivals_have_equal_distances() -> None:
    """From the first moment of the warm-up on."""
    (stage,) = stages(1.0, type="constant", rate=4, seconds=2)
    assert stage.moments(Random(1)) == pytest.approx([number / 4 for number in range(12)])


def test_poisson_arrivals_have_exponential_distances() -> None:
    """Their mean and their deviation are equal, and the same seed gives the same moments."""
    stage = rate_stage(50, 200, 0, "poisson")
    moments = stage.moments(Random(3))
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.pstdev(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert moments == stage.moments(Random(3))
    assert moments != stage.moments(Random(4))


def test_a_ramp_changes_its_rate_linearly() -> None:
    """The k-th request comes when the integral of the rate is k: here t squared over 2, as the rate is t."""
    (stage,) = stages(type="ramp", rate_from=1e-9, rate_to=9.99, seconds=9.99, process="constant", parts=2)
    moments = stage.moments(Random(1))
    assert len(moments) == 50  # the integral is 49.9
    assert moments == pytest.approx([(2 * number) ** 0.5 for number in range(50)], abs=1e-3)
    assert [segment.mean_rate for segment in stage.segments] == pytest.approx([2.4975, 7.4925])


def test_a_falling_ramp_ends_at_its_rate() -> None:
    """Fewer requests in each second than in the one before."""
    (stage,) = stages(type="ramp", rate_from=20, rate_to=2, seconds=10, process="constant")
    moments = stage.moments(Random(1))
    assert len(moments) == 110
    counts = [sum(second <= moment < second + 1 for moment in moments) for second in range(10)]
    assert counts == sorted(counts, reverse=True)
    assert max(moments) < 10


def test_steps_and_spikes_are_one_stage_without_pauses() -> None:
    """Their parts have figures of their own."""
    (steps,) = stages(type="step", rate_from=2, rate_to=6, step=2, seconds=10, process="constant")
    assert [segment.rate for segment in steps.segments] == [2, 4, 6]
    assert len(steps.moments(Random(1))) == 120
    (spike,) = stages(
        type="spike", rate=1, peak=10, seconds_before=5, seconds_peak=2, seconds_after=5, process="constant"
    )
    moments = spike.moments(Random(1))
    assert [sum(start <= at < end for at in moments) for _, start, end in spike.windows()] == [5, 20, 5]
    down = stages(type="step", rate_from=6, rate_to=2, step=2, seconds=1)
    assert [segment.rate for segment in down[0].segments] == [6, 4, 2]


def test_a_soak_is_reported_in_parts() -> None:
    """So that a drift can be seen."""
    (stage,) = stages(type="soak", rate=1, seconds=100, parts=4)
    assert [(start, end) for _, start, end in stage.windows()] == [(0, 25), (25, 50), (50, 75), (75, 100)]


def test_a_trace_keeps_its_moments(tmp_path: Path) -> None:
    """The rate that is reported is that of the measured part."""
    (tmp_path / "t.jsonl").write_text(
        "".join(f'{{"timestamp": {at}, "input_length": 9, "output_length": 3}}\n' for at in (5000, 6000, 9000))
    )
    arrivals = ARRIVALS.validate_python({"type": "trace", "file": "t.jsonl", "speed": 2})
    arrivals.read(str(tmp_path))
    (stage,) = arrivals.stages(0.25)
    assert stage.moments(Random(1)) == [0.0, 0.5, 2.0]
    assert stage.segments[0].rate == pytest.approx(2 / 1.75, rel=0.01)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "poisson", "rate": 0, "seconds": 1},
        {"type": "poisson", "rate": [], "seconds": 1},
        {"type": "closed", "users": 0, "seconds": 1},
        {"type": "closed", "users": 1, "seconds": 1, "rate": 2},
        {"type": "sweep", "seconds": 1, "factor": 1},
        {"type": "burst", "seconds": 1},
        {"type": "trace", "file": ""},
    ],
)
def test_impossible_arrivals_are_refused(fields: dict[str, Any]) -> None:
    """Neither is a field of another kind ignored."""
    with pytest.raises(ValidationError):
        ARRIVALS.validate_python(fields)
