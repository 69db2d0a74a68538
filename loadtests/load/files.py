"""Writes a report's files."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from loadtests.load.html_report import html
from loadtests.load.report import Report, StageRun, write_json
from loadtests.load.scenario import Scenario
from loadtests.load.vllm_result import vllm_result


def write_report(folder: Path, report: Report, runs: Sequence[StageRun], scenario: Scenario) -> None:
    """Write ``report.html``, ``report.json``, ``report.csv``, and ``vllm/STAGE-REPETITION.json``.

    Args:
        folder: the folder, which is made if it does not exist.
        report: the report.
        runs: what was measured.
        scenario: the scenario.

    Raises:
        OSError: a file cannot be written.
    """
    (folder / "vllm").mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report.model_dump(mode="json"))
    (folder / "report.html").write_text(html(report), encoding="utf-8")
    with (folder / "report.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows(report))
    for run in runs:
        name = re.sub(r"[^\w.]+", "-", run.stage.name.replace("/s", " per second")).strip("-")
        write_json(folder / "vllm" / f"{name}-{run.repetition + 1}.json", vllm_result(run, report, scenario))


def rows(report: Report) -> list[list[object]]:
    """Return the lines of the CSV file: one per segment and repetition, and one per kind of work."""
    figures = list(report.segments[0].repetitions[0]) if report.segments else []
    lines: list[list[object]] = [["stage", "segment", "repetition", "work", "users", "rate", *figures]]
    for segment in report.segments:
        start: list[object] = [segment.stage, segment.name]
        load: list[object] = [segment.users, segment.rate]
        for number, values in enumerate(segment.repetitions, 1):
            lines.append([*start, number, "all", *load, *(values.get(figure) for figure in figures)])
        for work, values in segment.work.items():
            lines.append([*start, "mean", work, *load, *(values.get(figure) for figure in figures)])
    return lines
