"""Compares the load generator with GuideLLM: both measure the same server at the same constant rate, in turns.

    .venv/bin/python -m loadtests.guidellm_check --guidellm ~/guidellm/bin/guidellm

GuideLLM is installed in an environment of its own (``pip install guidellm``). Its "inter-token latency" is our TPOT:
both are the mean time between the tokens of a request. The server has half of the cores for itself. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadtests.load.calibration import LoadError, calibrate
from loadtests.load.http_client import ConnectionPool, Target
from loadtests.load.launch import locust_python
from loadtests.load.scenario import parse_scenario
from loadtests.peers.ceiling import listens
from loadtests.peers.models import NoModel, embedded_gguf, tokenizer_folder
from loadtests.peers.process import running
from loadtests.service import ROOT, free_port, running_service

TOLERANCE = 0.05
MODEL = "smollm2-135m-instruct"
_WARMUP_SECONDS = 5.0
# our figure: (GuideLLM's metric, its statistic, the label)
FIGURES = {
    "median_ttft_ms": ("time_to_first_token_ms", "median", "TTFT p50, ms"),
    "mean_ttft_ms": ("time_to_first_token_ms", "mean", "TTFT mean, ms"),
    "median_tpot_ms": ("inter_token_latency_ms", "median", "time between tokens p50, ms"),
    "mean_tpot_ms": ("inter_token_latency_ms", "mean", "time between tokens mean, ms"),
    "request_throughput": ("requests_per_second", "mean", "requests/s"),
    "output_throughput": ("output_tokens_per_second", "mean", "tokens/s"),
}
Figures = dict[str, float]


def main() -> int:
    """Measure, print the table, and return 1 if a figure differs by more than 5 %."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.guidellm_check", description=__doc__.partition("\n")[0])
    parser.add_argument("--guidellm", type=Path, required=True, help="its console script")
    parser.add_argument("--rate", type=float, default=1.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a measurement, after the warm-up")
    parser.add_argument("--prompt-tokens", type=int, default=84)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--mock", action="store_true", help="on GuideLLM's own mock server: 200 ms, then 20 ms a token")
    parser.add_argument("--rounds", type=int, default=2, help="measurements with each, in the order A B B A")
    options = parser.parse_args()
    found: dict[str, list[Figures]] = {"guidellm": [], "ours": []}
    cores = sorted(os.sched_getaffinity(0))
    server, generators = cores[: (len(cores) + 1) // 2], cores[len(cores) // 2 :]
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            on_cores(server),
            mock_server(options.guidellm) if options.mock else warmstart() as url,
            on_cores(generators),
        ):
            tokenizer = tokenizer_folder(embedded_gguf(Path(sys.executable)), Path(folder))
            for number in range(options.rounds):
                for name in list(found)[:: 1 if number % 2 == 0 else -1]:
                    measure = guidellm if name == "guidellm" else measured_by_ours
                    found[name].append(measure(url, tokenizer, Path(folder), options))
                    print(f"{name}: {found[name][-1]}", file=sys.stderr, flush=True)
        text, agrees = table(found)
    except (LoadError, NoModel, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    print(text)
    return int(not agrees)


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Start processes during the block on these cores, so that a generator's own work does not slow the server."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def warmstart() -> Iterator[str]:
    """Run Warmstart during the block; yields its URL.

    Raises:
        RuntimeError: it does not start.
    """
    # Drafts make the time between tokens depend on the text, and the two send different texts.
    with running_service(RESPONSE_CACHE="off", SPECULATE_TOKENS="0") as service:
        service.wait("/readyz")
        yield service.url


@contextmanager
def mock_server(program: Path) -> Iterator[str]:
    """Run GuideLLM's mock server during the block, whose latencies are known; yields its URL.

    Raises:
        RuntimeError: it does not start.
    """
    port = free_port()
    command = [str(program), "mock-server", f"--port={port}", "--ttft-ms=200", "--itl-ms=20", f"--model={MODEL}"]
    with tempfile.TemporaryDirectory() as folder, running(command, {}, ROOT, Path(folder) / "log") as child:
        child.until(lambda: listens(port), 120, "listening")
        yield f"http://127.0.0.1:{port}"


def measured_by_ours(url: str, tokenizer: Path, folder: Path, options: argparse.Namespace) -> Figures:
    """Measure with the load generator.

    Raises:
        RuntimeError: it failed.
    """
    scenario = folder / "check.toml"
    scenario.write_text(_scenario(options))
    python = locust_python()
    if python is None:
        raise RuntimeError("Locust is missing; run: make .venv-load/.done")
    _run([python, "-m", "loadtests.load", str(scenario), f"--host={url}", f"--out={folder / 'out'}", "--quiet"])
    report = json.loads((folder / "out" / "report.json").read_text())
    if report["bottleneck"]:
        print(f"the load generator was late: {report['bottleneck']}", file=sys.stderr)
    return figures_of(report)


def guidellm(url: str, tokenizer: Path, folder: Path, options: argparse.Namespace) -> Figures:
    """Measure with GuideLLM.

    Raises:
        RuntimeError: it failed.
    """
    sample = parse_scenario(tomllib.loads(_scenario(options)))
    template = round(calibrate(sample, ConnectionPool(Target(url)), MODEL, 0).template_tokens)  # theirs come on top
    output = folder / "guidellm.json"
    command = [
        *(str(options.guidellm), "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={url},model={MODEL}"),
        *("--profile", f"kind=constant,rate={options.rate},warmup={_WARMUP_SECONDS:g}"),
        *("--constraint", f"kind=max_duration,seconds={options.seconds + _WARMUP_SECONDS:g}"),
        *("--tokenizer", f"kind=hf_auto,model={tokenizer}"),
        "--data",
        f"kind=synthetic_text,prompt_tokens={options.prompt_tokens - template},output_tokens={options.output_tokens}",
        *("--output", f"kind=json,path={output}"),
    ]
    _run(command, HF_HUB_OFFLINE="1")
    return theirs(json.loads(output.read_text()))


def _scenario(options: argparse.Namespace) -> str:
    return (
        f'name = "check"\nwarmup_seconds = {_WARMUP_SECONDS}\n[arrivals]\ntype = "constant"\nrate = {options.rate}\n'
        f'seconds = {options.seconds}\n[[work]]\nkind = "chat"\nprompt_tokens = {options.prompt_tokens}\n'
        f"output_tokens = {options.output_tokens}\nfields = {{ ignore_eos = true }}\n"
    )


def figures_of(report: dict[str, Any]) -> Figures:
    """Return the figures of a report of the load generator."""
    return {name: report["segments"][0]["repetitions"][0][name] for name in FIGURES}


def theirs(report: dict[str, Any]) -> Figures:
    """Return the same figures of GuideLLM's report."""
    metrics = report["benchmarks"][0]["metrics"]
    return {name: metrics[metric]["successful"][statistic] for name, (metric, statistic, _) in FIGURES.items()}


def table(found: Mapping[str, Sequence[Figures]]) -> tuple[str, bool]:
    """Return a Markdown table of the means, and whether all agree within the tolerance.

    Raises:
        RuntimeError: a figure is 0: there was no answer in the measured time.
    """
    lines = ["| figure | GuideLLM | warmstart load | ratio |", "|---|---:|---:|---:|"]
    agrees = True
    for name, (_, _, label) in FIGURES.items():
        other, mine = (statistics.fmean(run[name] for run in found[which]) for which in ("guidellm", "ours"))
        if not other or not mine:
            raise RuntimeError(f"nothing was measured of {label}: give more --seconds, or a quiet machine")
        agrees &= abs(mine / other - 1) <= TOLERANCE
        lines.append(f"| {label} | {other:.4g} | {mine:.4g} | {mine / other:.3f} |")
    return "\n".join(lines), agrees


def _run(command: Sequence[str], **environment: str) -> None:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with status {done.returncode}:\n{done.stdout[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
