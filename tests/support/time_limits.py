"""A pytest plugin with a time limit for every test: a hanging test fails with all stacks, and the run continues.

``setup.cfg`` sets the limit. pytest-timeout raises it by SIGALRM in the main thread; its other method, a thread, would
end the whole run. Code that never returns to the interpreter cannot be interrupted like that: for it,
``faulthandler_timeout`` dumps the stacks and ends the run.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import psutil
import pytest
from pytest_timeout import Settings

SLOW_SECONDS = 900
"""The limit of a test with the mark ``slow``, unless it has its own limit."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set the time limit of slow tests."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Give the teardown the same time limit again.

    pytest-timeout's limit ends with the first failure, but the teardown cancels and awaits the tasks that a test left.
    """
    marker = item.get_closest_marker("timeout")
    seconds = float(marker.args[0] if marker else item.config.getini("timeout") or 0)
    if seconds:
        settings = Settings(seconds, "signal", func_only=False, disable_debugger_detection=None)
        item.ihook.pytest_timeout_set_timer(item=item, settings=settings)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show where the tasks of a failed test wait.

    The stack of an event loop's thread shows only that the loop waits.
    """
    report = yield
    runner = getattr(item, "funcargs", {}).get("_function_scoped_runner")
    if report.when == "call" and report.failed and runner is not None:
        for task in asyncio.all_tasks(runner.get_loop()):
            report.sections.append((f"stack of {task.get_name()}", "".join(_stack(task.get_coro()).format())))
    return report


def _stack(coroutine: Any) -> traceback.StackSummary:
    """Return the frames of a suspended coroutine, from the outermost to the one that waits."""
    frames = []
    while coroutine is not None:
        for kind in ("cr", "ag", "gi"):
            if (frame := getattr(coroutine, f"{kind}_frame", None)) is not None:
                frames.append((frame, frame.f_lineno))
                coroutine = getattr(coroutine, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:
            coroutine = None
    return traceback.StackSummary.extract(iter(frames))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """End the processes that tests have left, after the session's fixtures have ended theirs."""
    left = psutil.Process().children(recursive=True)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)
