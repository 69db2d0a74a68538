"""Finds the saturation of Warmstart and of every other server that is installed, and draws their curves.

    python3 -m loadtests.peers.saturation --llama-server PATH --out FOLDER [--gguf FILE]

Each server is started in turn and gets the scenario ``saturation`` (or ``--scenario``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from loadtests.load.line_chart import ChartSeries, line_chart, svg_file
from loadtests.peers import models
from loadtests.peers.__main__ import find, parser
from loadtests.peers.load import GENERATOR, run_generator
from loadtests.peers.report import Run
from loadtests.peers.servers import Server
from loadtests.peers.session import started

CHARTS = {
    "ttft": ("median_ttft_ms", "Time to first token, p50", "ms"),
    "ttft-p99": ("p99_ttft_ms", "Time to first token, p99", "ms"),
    "tpot": ("median_tpot_ms", "Time per output token, p50", "ms"),
    "goodput": ("request_goodput", "Goodput: requests per second within the objective", "1/s"),
    "throughput": ("output_throughput", "Tokens per second", "1/s"),
}

_MOST = ("output_throughput", "request_goodput")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the servers and write ``saturation.md``, a chart per figure, and each server's own report.

    Returns:
        0; 1 if a server failed; 2 if something is missing.
    """
    made = parser()
    made.add_argument("--scenario", default="saturation", help="a sweep of the load generator, by file or name")
    options = made.parse_args(arguments)
    if not GENERATOR.exists() or not options.out:
        print("give --out, and run: make .venv-load/.done", file=sys.stderr)
        return 2
    reports: dict[str, dict[str, Any]] = {}
    try:
        found = [server for server in find(options) if not options.servers or server.key in options.servers]
    except models.NoModel as error:
        print(error, file=sys.stderr)
        return 2
    for server in found:
        print(server.name, file=sys.stderr, flush=True)
        if report := measure(server, options):
            reports[server.key] = report
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "saturation.md").write_text(table(reports) + "\n")
    for name, (figure, title, unit) in CHARTS.items():
        (options.out / f"{name}.svg").write_text(svg_file(curve(reports, figure, title, unit)))
    print(table(reports))
    return int(len(reports) < len(found))


def measure(server: Server, options: argparse.Namespace) -> dict[str, Any] | None:
    """Start a server, find its saturation, and end it; None if it failed, which is printed."""
    try:
        with started(server, Run(server.key, server.name), temperature=0.0) as (port, child):
            model = [f"--model={server.model}"] if server.model else []
            return run_generator(options.scenario, port, options.out / server.key, child, *model)
    except (RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return None


def curve(reports: dict[str, dict[str, Any]], figure: str, title: str, unit: str) -> str:
    """Return a chart of a figure against the rate, with a line per server."""
    lines = [
        ChartSeries(name, [(segment["rate"], _mean(segment, figure)) for segment in report["segments"]])
        for name, report in reports.items()
    ]
    return line_chart(title, "requests/s that were due", unit, lines)


def table(reports: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table with a row per server."""
    heads = ["server", "saturation, requests/s", "within the objective", "most tokens/s", "most good requests/s"]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for name, report in reports.items():
        sweep, segments = report["sweep"] or {}, report["segments"]
        most = [max(_mean(segment, figure) or 0.0 for segment in segments) for figure in _MOST]
        values = [sweep.get("saturation_rate"), sweep.get("goodput_rate"), *most]
        rows.append([name, *("-" if value is None else f"{value:.3g}" for value in values)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _mean(segment: dict[str, Any], figure: str) -> float | None:
    known = [values[figure] for values in segment["repetitions"] if values.get(figure) is not None]
    return sum(known) / len(known) if known else None


if __name__ == "__main__":
    sys.exit(main())
