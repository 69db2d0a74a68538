from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtests.service import ROOT, running_service

LOCUST = ROOT / ".venv-load" / "bin" / "locust"
GENERATING = (
    "/generate",
    "/generate (stream)",
    "/complete",
    "/complete (stream)",
    "/chat/completions (stream)",
    "/v1/chat/completions",
)
PROBED = ("/health", "/livez", "/readyz", "/models", "/model-info", "/v1/models")


@pytest.fixture(autouse=True)
def _locust_is_installed() -> None:
    if not LOCUST.exists():
        pytest.skip("NO LOAD TEST WAS RUN: locust is missing; run: make .venv-load/.done")


def run_locust(file: str, host: str, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a Locust file without its web page."""
    command = [str(LOCUST), "-f", f"loadtests/{file}", "--headless", "--only-summary", "--host", host, *arguments]
    return subprocess.run(
        command, cwd=ROOT, timeout=timeout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


class _Broken(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def broken_server() -> Iterator[str]:
    """A server that answers 500 to everything."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Broken) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_the_service_answers_every_operation_under_the_smoke_load(tmp_path: Path) -> None:
    """Twenty seconds of all users: no failure, and rows for each operation, its first token and its tokens/s."""
    with running_service() as service:
        service.wait("/readyz", seconds=300)
        result = run_locust(
            "smoke.py",
            service.url,
            "--max-new-tokens=8",
            "--max-failure-ratio=0",
            f"--json-file={tmp_path / 'run'}",  # Locust adds .json; its CSV files lack what comes after the shape's end
            timeout=240,
        )
    assert result.returncode == 0, result.stdout
    rows = {
        (row["method"], row["name"]): row["num_requests"] for row in json.loads((tmp_path / "run.json").read_text())
    }
    wanted = [("GET", path) for path in PROBED] + [("POST", name) for name in GENERATING]
    wanted += [("TOKENS/S", f"{name} tokens/s") for name in GENERATING]
    wanted += [("TTFT", f"{name} ms") for name in GENERATING if "stream" in name]
    assert [row for row in wanted if not rows.get(row)] == [], result.stdout
    summary = next(text for text in result.stdout.splitlines() if text.startswith("SUMMARY "))
    figures = json.loads(summary.removeprefix("SUMMARY "))
    assert figures["failures"] == 0
    assert figures["completion_tokens"] > 0
    assert figures["tokens_per_second"] > 0
    assert figures["ttft_p50_ms"] > 0


def test_a_run_against_a_failing_server_fails(broken_server: str) -> None:
    """The threshold ends the run with status 1 and says which limit was broken."""
    result = run_locust("locustfile.py", broken_server, "-u6", "-r6", "-t3s", timeout=60)
    assert result.returncode == 1, result.stdout
    assert "THRESHOLD failure ratio 1.0000" in result.stdout


def test_a_run_that_tolerates_failures_passes(broken_server: str) -> None:
    """The threshold alone decides: failures below the limit are reported and do not fail the run."""
    result = run_locust("locustfile.py", broken_server, "-u6", "-r6", "-t2s", "--max-failure-ratio=1", timeout=60)
    assert result.returncode == 0, result.stdout
