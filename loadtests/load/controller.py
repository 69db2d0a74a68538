"""Leads a run: sends orders to the workers, collects their records, and chooses a sweep's rates. Needs Locust."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from threading import Thread
from typing import Any

from locust.runners import MasterRunner

from loadtests.load.arrivals import LoadStage, Sweep
from loadtests.load.calibration import LoadError, calibrate, served_model
from loadtests.load.console import Progress
from loadtests.load.figures import Values, estimate
from loadtests.load.generator import ENDED, ORDER, RECORDS
from loadtests.load.http_answer import BadAnswer
from loadtests.load.http_client import ConnectionPool, Target
from loadtests.load.machine import machine_facts
from loadtests.load.prompts import Prompts
from loadtests.load.record import unpacked
from loadtests.load.report import (
    Report,
    SegmentResult,
    StageRun,
    UsageSample,
    segment_results,
    usage_between,
)
from loadtests.load.saturation import RateResult, kept_up, next_rate, saturation
from loadtests.load.scenario import Scenario
from loadtests.load.server_usage import ServerUsage
from loadtests.load.time_line import time_line
from loadtests.load.verdict import bottleneck, broken_limits

_POLL_SECONDS = 0.1
_SAMPLE_SECONDS = 1.0
_LOST_SECONDS = 10.0  # without a worker's heartbeats, of which Locust misses three on a busy machine
_LATE_SECONDS = 30.0  # beyond the time that a stage may take: then a worker is lost


class LoadController:
    """Carries a scenario out.

    Args:
        runner: Locust's local or master runner, with its workers connected.
        scenario: the scenario.
        target: the server.
        model: the model to name; None: the server's first.
        progress: shows how far the run is.
    """

    def __init__(self, runner: Any, scenario: Scenario, target: Target, model: str | None, progress: Progress) -> None:
        self._runner, self._scenario, self._target, self._progress = runner, scenario, target, progress
        self._pool = ConnectionPool(target)
        self._model = model
        self._prompts = Prompts(0)
        self._collected: StageRun | None = None
        self._running: set[str] = set()
        self._number = self._failed = 0
        self.runs: list[StageRun] = []
        """All that was measured."""
        self.report = Report(
            scenario=scenario.model_dump(mode="json", exclude_unset=True),
            target=target.url,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine_facts(),
            workers=len(self._workers()),
        )
        runner.register_message(RECORDS, self._on_records)
        runner.register_message(ENDED, self._on_ended)

    def run(self) -> None:
        """Carry the scenario out; ``report`` and ``runs`` grow with each stage.

        Raises:
            LoadError: the server does not answer, or a worker is lost.
        """
        scenario, report = self._scenario, self.report
        report.model = self._model = self._model or served_model(self._pool)
        salt = 0 if scenario.repeat_prompts else secrets.randbits(48)
        self._prompts = calibrate(scenario, self._pool, self._model, salt)
        report.prompts = {
            "tokens_per_word": round(self._prompts.tokens_per_word, 4),
            "template_tokens": round(self._prompts.template_tokens, 1),
        }
        if isinstance(scenario.arrivals, Sweep):
            self._sweep(scenario.arrivals)
        else:
            stages = scenario.arrivals.stages(scenario.warmup_seconds)
            for repetition in range(scenario.repetitions):  # outermost, so that a drift affects all stages
                for stage in stages:
                    self._stage(stage, repetition)
                    self._summarize(stages)
        report.broken_limits = broken_limits(report, scenario.limits)
        report.complete = True

    def _sweep(self, sweep: Sweep) -> None:
        results: list[RateResult] = []
        stages: list[LoadStage] = []
        while (rate := next_rate(sweep, results)) is not None:
            stages.append(sweep.stage(rate, self._scenario.warmup_seconds))
            for repetition in range(self._scenario.repetitions):
                self._stage(stages[-1], repetition)
            self._summarize(sorted(stages, key=lambda stage: stage.segments[0].rate or 0.0))
            result = self._rate_result(rate, stages[-1])
            results.append(result)
            self._progress.say(
                f"{rate:.4g}/s: {'kept up' if result.kept_up else 'SATURATED'}, "
                f"{'within' if result.objective else 'outside'} the objective"
            )
            best, goodput = saturation(results)
            self.report.sweep = {"saturation_rate": best, "goodput_rate": goodput}

    def _rate_result(self, rate: float, stage: LoadStage) -> RateResult:
        segment = next(segment for segment in self.report.segments if segment.stage == stage.name)
        names = ("requests", "ended", "hung_up", "error_ratio", "slo_attainment")
        means: Values = {name: segment.mean(name) for name in names}
        attained = (means["slo_attainment"] or 0.0) * 100 >= self._scenario.slo.percent
        return RateResult(rate, kept_up(means), attained)

    def _summarize(self, stages: list[LoadStage]) -> None:
        """Compute the report's figures of all stages that have run."""
        report = self.report
        report.segments, report.bottleneck, report.time_lines = [], [], []
        for stage in stages:
            runs = [run for run in self.runs if run.stage.name == stage.name]
            if runs:
                segments: list[SegmentResult] = segment_results(runs, self._scenario)
                report.segments += segments
                report.bottleneck += dict.fromkeys(text for run in runs for text in bottleneck(run, segments))
                report.time_lines += [time_line(run) for run in runs]

    def _stage(self, stage: LoadStage, repetition: int) -> None:
        """Have the workers carry out one repetition of a stage, and keep what it measured.

        Raises:
            LoadError: a worker is lost.
        """
        self._number, self._failed = self._number + 1, 0
        workers = self._workers()
        if len(workers) != self.report.workers:
            raise LoadError(f"{len(workers)} of {self.report.workers} workers are left")
        run = self._collected = StageRun(stage=stage, repetition=repetition, records=[])
        self._running = set(workers)
        order = {
            "number": self._number,
            "scenario": self._scenario.model_dump(mode="json", exclude_unset=True),
            "stage": stage.model_dump(mode="json"),
            "repetition": repetition,
            "prompts": [self._prompts.salt, self._prompts.tokens_per_word, self._prompts.template_tokens],
            "model": self._model,
            "url": self._target.url,
            "workers": len(workers),
        }
        label = stage.name + (f", repetition {repetition + 1}" if self._scenario.repetitions > 1 else "")
        origin = time.perf_counter()
        for index, worker in enumerate(workers):
            self._runner.send_message(ORDER, order | {"worker": index}, client_id=worker)
        sampler = Thread(target=self._sample, args=(run, origin), daemon=True)
        sampler.start()
        complete = 0.0
        longest = stage.seconds + self._scenario.drain_seconds + _LATE_SECONDS
        while self._running:
            time.sleep(_POLL_SECONDS)
            since = time.perf_counter() - origin
            self._progress.show(label, since / stage.seconds, len(run.records), self._failed)
            if not (lost := len(workers) - len(self._workers())):
                complete = since
            if since > longest or since > complete + _LOST_SECONDS:
                said = f"{lost} of {len(workers)} workers are lost" if lost else "the workers do not end"
                raise LoadError(f"{stage.name}: {said}")
        self._collected = None
        sampler.join()
        self.runs.append(run)
        self._progress.say(_line(label, run))

    def _workers(self) -> list[str]:
        """Return the ids of the workers that are connected."""
        if not isinstance(self._runner, MasterRunner):
            return ["local"]
        clients = self._runner.clients
        return sorted(node.id for node in [*clients.ready, *clients.spawning, *clients.running])

    def _sample(self, run: StageRun, origin: float) -> None:
        usage = ServerUsage(self._target)
        while self._collected is run:
            at = time.perf_counter() - origin
            try:
                read = usage.read()
            except (OSError, BadAnswer):
                read = None
            if read:
                run.usage.append(UsageSample(at=at, cpu_seconds=read[0], memory_bytes=read[1]))
            end = time.perf_counter() + _SAMPLE_SECONDS
            while self._collected is run and time.perf_counter() < end:
                time.sleep(_POLL_SECONDS)

    def _on_records(self, environment: Any, msg: Any, **_: Any) -> None:
        if self._collected and msg.data["number"] == self._number:
            records = [unpacked(fields) for fields in msg.data["records"]]
            self._collected.records += records
            self._failed += sum(record.failed for record in records)

    def _on_ended(self, environment: Any, msg: Any, **_: Any) -> None:
        if self._collected and msg.data["number"] == self._number:
            self._collected.generator.cpu_cores += msg.data["cpu_cores"]
            self._collected.generator.delayed += msg.data["delayed"]
            self._running.discard(msg.node_id)


def _line(label: str, run: StageRun) -> str:
    failed = sum(record.failed for record in run.records)
    waits: Iterator[float] = (wait for record in run.records if (wait := record.ttft) is not None)
    mean = estimate(waits)
    said = f", mean TTFT {mean.mean * 1000:.0f} ms" if mean else ""
    cores = usage_between(run.usage, 0, run.stage.seconds)["server_cpu_cores"]
    return f"{label}: {len(run.records)} requests, {failed} errors{said}" + (
        f", server {cores:.2f} cores" if cores is not None else ""
    )
