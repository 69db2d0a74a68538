"""The load generator's processes: alone, as Locust's master with workers, or as a worker. Needs Locust."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gevent import get_hub
from locust.env import Environment  # first, because it replaces sockets and threads by gevent's

from loadtests.load import console  # isort: skip
from loadtests.load.calibration import LoadError
from loadtests.load.comparing import compare_reports, print_comparison
from loadtests.load.controller import LoadController
from loadtests.load.files import write_report
from loadtests.load.generator import prepare, take_orders
from loadtests.load.http_client import Target
from loadtests.load.launch import SERVICE_PYTHON, package_environment
from loadtests.load.options import add_options, check_options
from loadtests.load.report import read_report
from loadtests.load.scenario import Scenario, ScenarioError, load_scenario

_WORKERS_SECONDS = 120.0
_QUIT_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the processes; see ``loadtests.load.launch.run`` for the exit status."""
    parser = argparse.ArgumentParser(prog="warmstart load", description="Put a load on a server, and report it.")
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(parser, options)
    options.events_python = os.environ.get(SERVICE_PYTHON, sys.executable)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: end with what was measured
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        if options.compare:
            return compare_reports(options)
        if options.worker:
            return _work(options)
        scenario = load_scenario(options.scenario)
        _check_events(scenario, options)
        baseline = read_report(options.baseline) if options.baseline else None
        target = Target(options.host, options.api_key, not options.insecure)
    except (ScenarioError, ValueError) as error:
        print(f"warmstart: {error}", file=sys.stderr)
        return 2
    if options.seed is not None:
        scenario.seed = options.seed
    return _lead(scenario, target, options, baseline)


def _lead(scenario: Scenario, target: Target, options: argparse.Namespace, baseline: Any) -> int:
    progress, status = console.Progress(options.quiet), 0
    environment = prepare(options)
    get_hub().NOT_ERROR += (KeyboardInterrupt,)  # it is handled below; gevent would print it, too
    with _runner(environment, options, progress):
        controller = LoadController(environment.runner, scenario, target, options.model or scenario.model, progress)
        try:
            controller.run()
        except LoadError as error:
            print(f"warmstart: {error}", file=sys.stderr)
            status = 1
        except KeyboardInterrupt:
            status = 130
    report = controller.report
    if report.segments:
        print(console.summary(report), flush=True)
        if options.out:
            write_report(options.out, report, controller.runs, scenario)
            progress.say(f"written: {options.out}/report.html")
    if status:
        return status
    if baseline:
        status = print_comparison(baseline, report, scenario.compare)
    if report.bottleneck and (baseline or scenario.limits):
        return 3
    return int(bool(status or report.broken_limits))


@contextmanager
def _runner(environment: Environment, options: argparse.Namespace, progress: console.Progress) -> Iterator[None]:
    """Run Locust's runner during the block, with its workers connected and ready.

    Raises:
        SystemExit: workers are missing.
    """
    count = options.workers or options.expect_workers
    children: list[subprocess.Popen[bytes]] = []
    web_ui = None
    try:
        if count:
            host = "127.0.0.1" if options.workers else "*"
            runner = environment.create_master_runner(host, options.master_port)
            children = [_start_worker(options) for _ in range(options.workers)]
            progress.say(f"waiting for {count} workers")
            end = time.monotonic() + _WORKERS_SECONDS
            while len(runner.clients.ready) < count:
                if time.monotonic() > end or any(child.poll() is not None for child in children):
                    raise SystemExit(f"warmstart: {len(runner.clients.ready)} of {count} workers have come")
                time.sleep(0.1)
        else:
            runner = environment.create_local_runner()
            take_orders(environment)
        if options.web_port:
            sys.argv[1:] = []  # the page would parse them as options of Locust's own command
            web_ui = environment.create_web_ui("127.0.0.1", options.web_port)
        runner.start(count or 1, spawn_rate=min(count or 1, 100))
        yield
    finally:
        environment.load_orders.put(None)
        if environment.runner:
            environment.runner.quit()
        if web_ui:
            web_ui.stop()
        for child in children:
            try:
                child.wait(_QUIT_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _start_worker(options: argparse.Namespace) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "loadtests.load", "--worker", "--master-port", str(options.master_port)]
    command += ["--insecure"] if options.insecure else []
    command += ["--events", options.events] if options.events else []
    secret = {"API_KEY": options.api_key} if options.api_key else {}  # not in the list of processes
    return subprocess.Popen(command, env=package_environment() | secret)


def _work(options: argparse.Namespace) -> int:
    environment = prepare(options)
    runner = environment.create_worker_runner(options.master_host, options.master_port)
    take_orders(environment)
    try:
        runner.greenlet.join()
    except KeyboardInterrupt:
        runner.quit()
    return 0


def _check_events(scenario: Scenario, options: argparse.Namespace) -> None:
    if any(work.kind == "event" for work in scenario.work) != bool(options.events):
        raise ScenarioError("--events: give the broker's URL if, and only if, the scenario has work of kind 'event'")


if __name__ == "__main__":
    sys.exit(main())
