"""The generator as it is run: Locust in processes of its own, against a server that does no work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.load.launch import locust_python
from loadtests.load.report import read_report
from loadtests.service import ROOT, free_port, running_service
from tests.loadtests.load.stub import stub_server

PYTHON = str(ROOT / ".venv-load" / "bin" / "python")
SMALL = """
name = "small"
seed = 3
warmup_seconds = 0.5
[arrivals]
type = "constant"
rate = 20
seconds = 1
[[work]]
kind = "chat"
prompt_tokens = 30
output_tokens = 4
[limits]
error_ratio = 0
"""


@pytest.fixture(autouse=True)
def _locust_is_installed() -> None:
    if not Path(PYTHON).exists():
        pytest.skip("NO LOAD TEST WAS RUN: locust is missing; run: make .venv-load/.done")


def load(*arguments: str, python: str = PYTHON, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "loadtests.load", *arguments, f"--master-port={free_port()}"]
    return subprocess.run(command, cwd=ROOT, timeout=timeout, capture_output=True, text=True, check=False)


def test_two_worker_processes_share_the_load(tmp_path: Path) -> None:
    """Locust's master leads them: each request is sent once, and the report is of both."""
    (tmp_path / "small.toml").write_text(SMALL)
    with stub_server() as server:
        done = load(str(tmp_path / "small.toml"), f"--host={server.url}", f"--out={tmp_path}", "--workers=2")
        chats = [body for path, body in server.asked if path == "/v1/chat/completions"]
    assert done.returncode in (0, 3), done.stdout + done.stderr  # 3: this machine is busy, and it was told
    assert (done.returncode == 3) == ("BOTTLENECK" in done.stdout)
    assert len(chats) == 30 + 2  # and two that measure the tokenizer
    assert {body["model"] for body in chats} == {"stub"}
    assert len({body["messages"][0]["content"] for body in chats}) == 32
    report = read_report(tmp_path)
    (segment,) = report.segments
    assert (segment.mean("requests"), segment.mean("failed"), segment.mean("total_output_tokens")) == (20, 0, 80)
    assert segment.mean("total_input_tokens") == 20 * 30
    assert segment.mean("server_memory_mb")
    assert (report.complete, report.workers) == (True, 2)
    assert len(json.loads((tmp_path / "vllm" / "20-per-second-1.json").read_text())["ttfts"]) == 20


def test_a_sweep_finds_the_saturation_by_itself(tmp_path: Path) -> None:
    """A server that takes 0.1 s for each request is saturated far below 15 a second, and the run ends by itself."""
    (tmp_path / "sweep.toml").write_text(
        'name = "sweep"\nwarmup_seconds = 0.2\n[arrivals]\ntype = "sweep"\nprocess = "constant"\nrate = 1\n'
        'factor = 30\nrefinements = 1\nseconds = 1\n[[work]]\nkind = "completion"\noutput_tokens = 2\n'
        "[limits]\ngoodput_rate = 100\n"
    )
    with stub_server(delay=0.1, serial=True) as server:
        done = load(str(tmp_path / "sweep.toml"), f"--host={server.url}", f"--out={tmp_path / 'out'}")
    report = read_report(tmp_path / "out")
    assert report.sweep
    assert report.sweep["saturation_rate"] == 1, done.stderr
    assert "SATURATED" in done.stderr
    assert [segment.rate for segment in report.segments] == [1, 15.5, 30]
    assert "Saturation: the server keeps up with" in done.stdout
    assert "LIMIT sweep: goodput_rate" in done.stdout
    assert done.returncode in (1, 3)


def test_a_server_that_does_not_answer_ends_the_run(tmp_path: Path) -> None:
    """Before any load, with status 1."""
    (tmp_path / "small.toml").write_text(SMALL)
    done = load(str(tmp_path / "small.toml"), f"--host=http://127.0.0.1:{free_port()}")
    assert (done.returncode, "does not answer" in done.stderr) == (1, True), done.stderr


@pytest.mark.slow
def test_the_service_answers_every_operation_under_the_smoke_load(tmp_path: Path) -> None:
    """The command of the service runs the ready scenario against it: no failure, and each kind of work is measured."""
    command = [sys.executable, "-c", "import sys, server; sys.exit(server.main(sys.argv[1:]))", "load", "smoke"]
    assert locust_python()
    with running_service() as service:
        service.wait("/readyz", seconds=300)
        done = subprocess.run(
            [*command, f"--host={service.url}", f"--out={tmp_path}"],
            cwd=ROOT,
            timeout=240,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode in (0, 3), done.stdout + done.stderr
    report = read_report(tmp_path)
    assert report.broken_limits == []
    measured = {name for segment in report.segments for name in segment.work}
    assert measured == {work["name"] for work in report.scenario["work"]}
    assert all(segment.mean("output_throughput") for segment in report.segments)
