"""A report: what a run measured, as data that can be written and read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from loadgen.arrivals import LoadStage
from loadgen.figures import Estimate, Values, errors, estimate, measure, most_at_once, percentile
from loadgen.record import LoadRecord
from loadgen.scenario import Scenario, ScenarioError

FORMAT = 1
_BUCKETS = 120  # points of a time line


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
        values = [_values(run, start, end, scenario) for run in runs]
        failures: dict[str, int] = {}
        examples: list[str] = []
        for run in runs:
            counts, texts = errors(run.records, start, end)
            failures = {kind: failures.get(kind, 0) + counts.get(kind, 0) for kind in {**failures, **counts}}
            examples += [text[:500] for text in texts if text[:500] not in examples]
        work = {}
        for kind in (work.name for work in scenario.work):
            each = [
                measure([record for record in run.records if record.work == kind], start, end, scenario.slo)
                for run in runs
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


def time_line(run: StageRun) -> TimeLine:
    """Return a repetition over time, in equal parts of at least a second."""
    records: list[LoadRecord] = run.records
    end = max([run.stage.seconds, *(record.ended for record in records)])
    length = max(1.0, end / _BUCKETS)
    points = []
    for number in range(int(end / length) + 1):
        start, stop = number * length, (number + 1) * length
        due = [record for record in records if start <= record.due < stop]
        waits = [wait for record in due if (wait := record.ttft) is not None]
        p50, p99 = percentile(waits, 50), percentile(waits, 99)
        used = usage_between(run.usage, start, stop)
        points.append(
            TimePoint(
                at=round(start, 3),
                requests=len(due),
                errors=sum(record.failed for record in due),
                running=most_at_once(records, start, stop),
                tokens_per_second=round(sum(record.tokens_between(start, stop) for record in records) / length, 2),
                ttft_p50_ms=None if p50 is None else round(p50 * 1000, 2),
                ttft_p99_ms=None if p99 is None else round(p99 * 1000, 2),
                cpu_cores=used["server_cpu_cores"],
                memory_mb=used["server_memory_mb"],
            )
        )
    return TimeLine(stage=run.stage.name, repetition=run.repetition, points=points)


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


def vllm_result(run: StageRun, report: Report, scenario: Scenario) -> dict[str, Any]:
    """Return one repetition of a stage in the shape of the file that ``vllm bench serve --save-result`` writes.

    Its window is the whole stage without the warm-up. Lists have one entry per request that was due in it.
    """
    start, end = run.stage.warmup, run.stage.seconds
    values = _values(run, start, end, scenario)
    due = [record for record in run.records if start <= record.due < end]
    rate = run.stage.segments[0].mean_rate
    names = (
        *("duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput"),
        *("request_goodput", "output_throughput", "total_token_throughput", "max_concurrent_requests"),
    )
    return {
        "date": report.started,
        "backend": "openai-chat",
        "label": scenario.name,
        "model_id": report.model,
        "tokenizer_id": None,
        "num_prompts": len(due),
        "request_rate": "inf" if rate is None else rate,
        "burstiness": 1.0 if run.stage.process == "poisson" else "inf",
        "max_concurrency": run.stage.users,
        **{name: values[name] for name in names},
        "max_output_tokens_per_s": _most_tokens(due, start, end),
        "input_lens": [record.prompt_tokens for record in due],
        "output_lens": [record.completion_tokens for record in due],
        "ttfts": [record.ttft or 0.0 for record in due],
        "itls": [record.gaps() for record in due],
        "start_times": [record.due for record in due],
        "generated_texts": [""] * len(due),
        "errors": [record.detail if record.failed else "" for record in due],
        **{name: value for name, value in values.items() if name.endswith("_ms") and "late" not in name},
    }


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _most_tokens(records: Sequence[LoadRecord], start: float, end: float) -> float:
    seconds = range(int(end - start) or 1)
    return max(
        sum(record.tokens_between(start + second, start + second + 1) for record in records) for second in seconds
    )


def _values(run: StageRun, start: float, end: float, scenario: Scenario) -> Values:
    used = usage_between(run.usage, start, end) | {"generator_cpu_cores": sum(run.generator.cpu_cores)}
    return measure(run.records, start, end, scenario.slo) | used
