"""A report: what a run measured, as data that can be written and read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from loadtests.load.arrivals import LoadStage
from loadtests.load.figures import Estimate, Values, errors, estimate, measure
from loadtests.load.record import LoadRecord
from loadtests.load.scenario import Scenario, ScenarioError

FORMAT = 1


class UsageSample(BaseModel):
    """What a server used at a moment."""

    at: float
    """Seconds from the stage's start."""
    cpu_seconds: float
    """Processor time since the server's start."""
    memory_bytes: float


class GeneratorUsage(BaseModel):
    """What the generator used during a stage."""

    cpu_cores: list[float] = Field(default_factory=list)
    """Of each worker process, mean of the stage."""
    delayed: int = 0
    """Requests that waited because ``max_in_flight`` was reached."""


class TimePoint(BaseModel):
    """A moment of a stage's time line."""

    at: float
    requests: int
    """Requests that were due."""
    errors: int
    running: int
    """Greatest number at once."""
    tokens_per_second: float
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    cpu_cores: float | None
    memory_mb: float | None


class SegmentResult(BaseModel):
    """The figures of one segment of a stage."""

    stage: str
    name: str
    rate: float | None
    """Mean requests per second that the arrivals had; None in a closed loop."""
    users: int | None
    repetitions: list[dict[str, float | None]]
    work: dict[str, dict[str, float | None]]
    """Figures by kind of work, of all repetitions together (means)."""
    errors: dict[str, int]
    error_examples: list[str]

    def estimate(self, figure: str) -> Estimate | None:
        """Return a figure's mean over the repetitions; None: it was not measured."""
        return estimate(repetition.get(figure) for repetition in self.repetitions)

    def mean(self, figure: str) -> float | None:
        """Return a figure's mean over the repetitions; None: it was not measured."""
        found = self.estimate(figure)
        return found.mean if found else None


class TimeLine(BaseModel):
    """One repetition of a stage over time."""

    stage: str
    repetition: int
    points: list[TimePoint]


class Report(BaseModel):
    """A run."""

    format: int = FORMAT
    scenario: dict[str, Any]
    target: str
    model: str | None = None
    started: str
    """In UTC, ISO 8601."""
    machine: dict[str, str] = Field(default_factory=dict)
    """Of the generator."""
    workers: int = 1
    prompts: dict[str, float] = Field(default_factory=dict)
    """Tokens per word and of the chat template, as the server counted them."""
    segments: list[SegmentResult] = Field(default_factory=list)
    time_lines: list[TimeLine] = Field(default_factory=list)
    sweep: dict[str, float | None] | None = None
    bottleneck: list[str] = Field(default_factory=list)
    """Why the generator itself may have limited the figures; empty: it did not."""
    broken_limits: list[str] = Field(default_factory=list)
    complete: bool = False
    """Whether the run went to its end."""

    @property
    def name(self) -> str:
        """The scenario's name."""
        return str(self.scenario.get("name", "load"))


class StageRun(BaseModel):
    """All that was collected of one repetition of a stage."""

    model_config = {"arbitrary_types_allowed": True}

    stage: LoadStage
    repetition: int
    records: list[Any]  # LoadRecord, which pydantic need not look into
    usage: list[UsageSample] = Field(default_factory=list)
    generator: GeneratorUsage = GeneratorUsage()


def segment_results(runs: Sequence[StageRun], scenario: Scenario) -> list[SegmentResult]:
    """Return the figures of all segments of one stage.

    Args:
        runs: the stage's repetitions.
        scenario: has the objective.
    """
    stage = runs[0].stage
    results = []
    for segment, start, end in stage.windows():
        values = [window_values(run, start, end, scenario) for run in runs]
        inside = [_touching(run, start, end) for run in runs]
        failures: dict[str, int] = {}
        examples: list[str] = []
        for touching in inside:
            counts, texts = errors(touching, start, end)
            failures = {kind: failures.get(kind, 0) + counts.get(kind, 0) for kind in {**failures, **counts}}
            examples += [text[:500] for text in texts if text[:500] not in examples]
        work = {}
        for kind in (work.name for work in scenario.work):
            each = [
                measure([record for record in touching if record.work == kind], start, end, scenario.slo)
                for touching in inside
            ]
            means = {figure: estimate(one[figure] for one in each) for figure in each[0]}
            if any(one["requests"] for one in each):
                work[kind] = {figure: found.mean if found else None for figure, found in means.items()}
        results.append(
            SegmentResult(
                stage=stage.name,
                name=segment.name,
                rate=segment.mean_rate,
                users=stage.users,
                repetitions=values,
                work=work,
                errors=failures,
                error_examples=examples[:10],
            )
        )
    return results


def usage_between(samples: Sequence[UsageSample], start: float, end: float) -> Values:
    """Return a server's mean processor cores and its greatest memory in MB (10^6 bytes) between two moments."""
    inside = [sample for sample in samples if start - 0.5 <= sample.at <= end + 0.5]
    if len(inside) < 2 or inside[-1].at <= inside[0].at:
        cores = None
    else:
        spent = inside[-1].cpu_seconds - inside[0].cpu_seconds
        cores = round(max(0.0, spent) / (inside[-1].at - inside[0].at), 3)
    memory = max((sample.memory_bytes for sample in inside), default=None)
    return {"server_cpu_cores": cores, "server_memory_mb": None if memory is None else round(memory / 1e6, 1)}


def read_report(path: Path) -> Report:
    """Read a report.

    Args:
        path: its JSON file, or the folder with it.

    Raises:
        ScenarioError: there is none.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ScenarioError(f"{file}: {error.strerror}") from None
    except ValidationError as error:
        raise ScenarioError(f"{file}: not a report: {error.errors()[0]['msg']}") from None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def window_values(run: StageRun, start: float, end: float, scenario: Scenario) -> Values:
    """Return all figures of a window of a run."""
    used = usage_between(run.usage, start, end) | {"generator_cpu_cores": sum(run.generator.cpu_cores)}
    return measure(_touching(run, start, end), start, end, scenario.slo) | used


def _touching(run: StageRun, start: float, end: float) -> list[LoadRecord]:
    """Return the requests that were under way in a window: a long run has many windows."""
    return [record for record in run.records if record.due < end and record.ended >= start]
