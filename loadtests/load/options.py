"""The options of ``warmstart load``, with the standard library only."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

DEFAULT_HOST = "http://127.0.0.1:8000"
MASTER_PORT = 5557
"""Locust's default."""
_VALUES = (
    *("host", "model", "seed", "out", "baseline", "events", "workers", "expect_workers"),
    *("master_host", "master_port", "web_port"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    add = parser.add_argument
    add("scenario", nargs="?", default="", help="a TOML file, or a ready scenario: chat, mixed, saturation, smoke")
    add("--host", default=DEFAULT_HOST, metavar="URL", help=f"the server (default {DEFAULT_HOST})")
    add("--api-key", default=os.environ.get("API_KEY"), metavar="KEY", help="a bearer token; or set API_KEY")
    add("--insecure", action="store_true", help="accept any certificate")
    add("--model", metavar="NAME", help="the model to name in requests, instead of the scenario's")
    add("--seed", type=int, help="instead of the scenario's")
    add("--out", type=Path, metavar="FOLDER", help="write report.html, report.json, report.csv and vllm/*.json there")
    add("--baseline", type=Path, metavar="REPORT", help="compare with this earlier report by the scenario's ratios")
    add(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="compare two reports and run nothing; ratios are those of SCENARIO, or of the second report",
    )
    add("--events", metavar="URL", help="the broker of events, such as nats://127.0.0.1:4222")
    add("--workers", type=int, default=0, metavar="N", help="processes that send requests, started here (default: one)")
    add("--expect-workers", type=int, default=0, metavar="N", help="wait for so many workers from other machines")
    add("--worker", action="store_true", help="be a worker: take orders from --master-host")
    add("--master-host", default="127.0.0.1", metavar="HOST", help="where the master is, for a worker")
    add("--master-port", type=int, default=MASTER_PORT, metavar="PORT", help=f"its port (default {MASTER_PORT})")
    add("--web-port", type=int, metavar="PORT", help="also show Locust's page there, on 127.0.0.1")
    add("--quiet", action="store_true", help="no progress")


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the process with a message if options do not fit together."""
    if options.worker:
        if options.scenario or options.expect_workers or options.workers:
            parser.error("--worker: the master has the scenario, and starts no other workers")
    elif not options.scenario and not options.compare:
        parser.error("name a scenario: a TOML file, or one of chat, mixed, saturation, smoke")
    if not 0 <= options.workers <= 64:
        parser.error("--workers: 0 to 64")
    if options.workers and options.expect_workers:
        parser.error("--workers starts workers here, --expect-workers waits for others: give one")
    if options.expect_workers < 0:
        parser.error("--expect-workers: at least 1")


def arguments(options: argparse.Namespace) -> list[str]:
    """Return the arguments of a run that parse to these options. The API key is not among them: all users see them."""
    found = [f"--{name}" for name in ("insecure", "worker", "quiet") if getattr(options, name)]
    values = {name.replace("_", "-"): getattr(options, name) for name in _VALUES}
    found += [f"--{name}={value}" for name, value in values.items() if value is not None]
    return [*found, *([options.scenario] if options.scenario else [])]
