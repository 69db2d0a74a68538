"""``warmstart load``: runs the generator in an environment that has Locust, which the service's must not have loaded.

Locust replaces the sockets and threads of its process by gevent's, so the generator is a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from loadtests.load.options import add_options, arguments, check_options

_ROOT = Path(__file__).resolve().parents[2]
SERVICE_PYTHON = "WARMSTART_PYTHON"
"""The variable that tells the generator which interpreter has the service, for events."""
MISSING = (
    "Locust is missing. In a checkout run: make .venv-load/.done; "
    "for an installed package: pip install 'warmstart[load]'"
)


def add(commands: Any) -> None:
    """Add ``load`` to the command line's subparsers."""
    text = "Put a load on a server, and report latencies, throughput and goodput."
    sub: argparse.ArgumentParser = commands.add_parser("load", help=text, description=text)
    add_options(sub)
    sub.set_defaults(run=lambda options: run(sub, options))


def run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Run ``load``, for a run by becoming the generator's process; the exit status is the generator's.

    Returns:
        0; 1 if a limit was broken, a comparison failed or the run could not end; 2 if the scenario is wrong or Locust
        is missing; 3 if the generator was the bottleneck of a run that is judged; 130 after Ctrl-C.
    """
    check_options(parser, options)
    if options.compare:  # needs no Locust
        from loadtests.load.comparing import compare_reports

        return compare_reports(options)
    python = locust_python()
    if python is None:
        print(f"warmstart: {MISSING}", file=sys.stderr)
        return 2
    key = {"API_KEY": options.api_key} if options.api_key else {}
    environment = package_environment() | key | {SERVICE_PYTHON: sys.executable}
    sys.stdout.flush()
    os.execve(python, [python, "-m", "loadtests.load", *arguments(options)], environment)  # noqa: S606 - no shell


def locust_python() -> str | None:
    """Return an interpreter that has Locust: this one, or a checkout's ``.venv-load``; None if there is none."""
    if importlib.util.find_spec("locust"):
        return sys.executable
    python = _ROOT / ".venv-load" / "bin" / "python"
    return str(python) if python.exists() else None


def package_environment() -> dict[str, str]:
    """Return this process's environment with the folder of this package on Python's path."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
