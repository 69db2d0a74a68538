from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loadtests.load.arrivals import LoadStage, Segment
from loadtests.load.console import comparison, summary
from loadtests.load.files import rows, write_report
from loadtests.load.html_report import html
from loadtests.load.report import (
    GeneratorUsage,
    Report,
    UsageSample,
    read_report,
    segment_results,
    usage_between,
)
from loadtests.load.scenario import ScenarioError
from loadtests.load.time_line import time_line
from loadtests.load.verdict import compare
from loadtests.load.vllm_result import vllm_result
from tests.loadtests.load.records import record, report, scenario, stage_run

SPIKE = LoadStage(
    name="spike",
    warmup=1,
    segments=[Segment(name="before", seconds=4, rate=1), Segment(name="peak <b>", seconds=5, rate=2)],
)
RECORDS = [
    record(0.5, [0.6]),  # in the warm-up
    record(2, [2.1, 2.2, 2.3]),
    record(6, [6.2, 6.3], work="other"),
    record(7, [], outcome="HTTP 500", detail="broken <i>"),
]
USAGE = [UsageSample(at=second, cpu_seconds=second / 2, memory_bytes=1e6 * second) for second in range(11)]


@pytest.fixture
def measured() -> Report:
    scenes = scenario(work=[{"kind": "chat"}, {"kind": "completion", "name": "other"}])
    run = stage_run(RECORDS, SPIKE, usage=USAGE, generator=GeneratorUsage(cpu_cores=[0.2, 0.1]))
    return Report(
        scenario=scenes.model_dump(mode="json", exclude_unset=True),
        target="http://x",
        model="m",
        started="2026-01-01T00:00:00+00:00",
        segments=segment_results([run, run], scenes),
        time_lines=[time_line(run)],
        complete=True,
        bottleneck=["late"],
    )


def test_each_segment_has_its_figures(measured: Report) -> None:
    """Without the warm-up, with those of each kind of work, errors, and what server and generator used."""
    before, peak = measured.segments
    assert (before.mean("requests"), peak.mean("requests")) == (1, 2)
    assert (peak.errors, peak.error_examples) == ({"HTTP 500": 2}, ["HTTP 500: broken <i>"])
    assert peak.work.keys() == {"chat", "other"}
    assert before.work.keys() == {"chat"}
    assert (before.mean("server_cpu_cores"), peak.mean("server_memory_mb")) == (0.5, 10)
    assert before.mean("generator_cpu_cores") == pytest.approx(0.3)
    assert before.estimate("requests") is not None


def test_a_time_line_has_a_point_per_second(measured: Report) -> None:
    """With the warm-up, which is seen there."""
    points = measured.time_lines[0].points
    assert len(points) == 11
    assert [point.requests for point in points] == [1, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0]
    assert points[2].tokens_per_second == 3
    assert points[7].errors == 1
    assert points[3].cpu_cores == 0.5


def test_a_report_is_read_as_it_was_written(measured: Report, tmp_path: Path) -> None:
    """From its folder or its file; a CSV line per segment, repetition and kind of work."""
    scenes = scenario()
    write_report(tmp_path / "out", measured, [stage_run(RECORDS, SPIKE)], scenes)
    assert read_report(tmp_path / "out") == read_report(tmp_path / "out" / "report.json") == measured
    with (tmp_path / "out" / "report.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["segment"], line["repetition"], line["work"]) for line in lines[:3]] == [
        ("before", "1", "all"),
        ("before", "2", "all"),
        ("before", "mean", "chat"),
    ]
    assert [file.name for file in (tmp_path / "out" / "vllm").iterdir()] == ["spike-1.json"]
    (tmp_path / "bad.json").write_text("{}")
    for path in (tmp_path / "bad.json", tmp_path / "none.json"):
        with pytest.raises(ScenarioError, match=path.name):
            read_report(path)


def test_the_json_is_that_of_vllm_bench_serve(measured: Report) -> None:
    """The names that its readers know; lists have an entry per request."""
    found = vllm_result(stage_run(RECORDS, SPIKE), measured, scenario())
    assert (found["completed"], found["failed"], found["num_prompts"], found["request_rate"]) == (2, 1, 3, 1)
    assert found["errors"] == ["", "", "broken <i>"]
    assert found["ttfts"] == pytest.approx([0.1, 0.2, 0])
    assert found["itls"] == [pytest.approx([0.1, 0.1]), pytest.approx([0.1]), []]
    assert found["output_lens"] == [3, 2, 0]
    assert found["median_ttft_ms"] == pytest.approx(150)
    wanted = {
        f"{part}_{name}_ms" for part in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl", "e2el")
    }
    assert found.keys() >= wanted | {"duration", "request_throughput", "output_throughput", "total_token_throughput"}
    json.dumps(found, allow_nan=False)


def test_the_page_is_one_file_with_charts(measured: Report) -> None:
    """It asks for nothing else, escapes what it shows, and says what went wrong."""
    page = html(measured)
    assert "<script" not in page
    assert "http-equiv" not in page
    assert 'src="' not in page
    assert "peak &lt;b&gt;" in page
    assert "The generator was the bottleneck: late" in page
    charts = page.split("<svg")[1:]
    assert len(charts) == 6 + 5
    for chart in charts:
        ElementTree.fromstring("<svg" + chart.partition("</svg>")[0] + "</svg>")


def test_the_console_shows_what_the_page_shows(measured: Report) -> None:
    """A line per segment with its confidence interval, errors with an example, and the verdict."""
    said = summary(measured)
    lines = said.splitlines()
    assert lines[1].startswith("spike: before")
    assert "±" in lines[1]
    assert "peak <b>: 2 x HTTP 500" in lines
    assert "THE GENERATOR WAS THE BOTTLENECK: late" in lines
    swept = report({}, sweep={"saturation_rate": 12.5, "goodput_rate": None})
    assert "keeps up with 12.5 requests/s; within the objective with - requests/s" in summary(swept)
    assert "did not end" in summary(swept)


def test_a_comparison_is_shown_with_its_verdicts() -> None:
    """Limits that are broken, and changes that mean nothing."""
    before = report({"p99_ttft_ms": 100.0}, {"p99_ttft_ms": 150.0}, {"p99_ttft_ms": 50.0})
    after = report({"p99_ttft_ms": 200.0})
    said = comparison(compare(before, after, {"p99_ttft_ms": 1.1}))
    assert "p99_ttft_ms" in said.splitlines()[1]
    assert "ok (within the confidence intervals)" in said
    assert "WORSE" in comparison(compare(report({"p99_ttft_ms": 100.0}), after, {"p99_ttft_ms": 1.1}))


def test_what_a_server_used_is_of_the_window() -> None:
    """Its processor time is a difference, its memory the most; nothing known is None."""
    assert usage_between(USAGE, 2, 6) == {"server_cpu_cores": 0.5, "server_memory_mb": 6.0}
    assert usage_between([], 2, 6) == {"server_cpu_cores": None, "server_memory_mb": None}
    assert usage_between(USAGE[:1], 0, 6)["server_cpu_cores"] is None


def test_a_report_without_a_stage_can_be_written(tmp_path: Path) -> None:
    """After an early end."""
    empty = Report(scenario={"name": "x"}, target="http://x", started="")
    assert rows(empty) == [["stage", "segment", "repetition", "work", "users", "rate"]]
    assert "did not end" in html(empty)
