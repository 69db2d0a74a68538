"""Records and reports, made by hand."""

from __future__ import annotations

from array import array
from typing import Any

from loadtests.load.arrivals import LoadStage, rate_stage
from loadtests.load.record import LoadRecord
from loadtests.load.report import Report, SegmentResult, StageRun
from loadtests.load.scenario import Scenario


def record(
    due: float, times: list[float], *, ended: float | None = None, tokens: int | None = None, **more: Any
) -> LoadRecord:
    """A request that was sent when it was due, with a token per time."""
    end = ended if ended is not None else times[-1] if times else due
    count = len(times) if tokens is None else tokens
    fields = {"work": "chat", "sent": due, "prompt_tokens": 10} | more
    return LoadRecord(due=due, ended=end, times=array("d", times), completion_tokens=count, **fields)


def scenario(**more: Any) -> Scenario:
    fields = {
        "name": "test",
        "warmup_seconds": 0,
        "arrivals": {"type": "constant", "rate": 1, "seconds": 10},
        "work": [{"kind": "chat"}],
    }
    return Scenario.model_validate(fields | more)


def stage_run(records: list[LoadRecord], stage: LoadStage | None = None, **more: Any) -> StageRun:
    return StageRun(stage=stage or rate_stage(1, 10, 0, "constant"), repetition=0, records=records, **more)


def report(*repetitions: dict[str, float | None], name: str = "1/s", **more: Any) -> Report:
    """A report of one segment."""
    values = [{"requests": 10.0} | repetition for repetition in repetitions]
    segment = SegmentResult(
        stage=name, name=name, rate=1.0, users=None, repetitions=values, work={}, errors={}, error_examples=[]
    )
    fields: dict[str, Any] = {
        "scenario": {"name": "test"},
        "target": "http://x",
        "started": "2026-01-01T00:00:00+00:00",
    }
    return Report(segments=[segment], **(fields | more))
