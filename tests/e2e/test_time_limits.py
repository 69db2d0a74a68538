"""tests.support.time_limits: a test that hangs is a failure with the stacks of all threads, and leaves nothing
behind.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from tests.support.models import ROOT

HANGS = """
import asyncio, subprocess, sys, threading, pytest

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]

async def deaf():
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

@pytest.mark.timeout(1)
async def test_awaits_a_task_that_loses_its_cancellation():
    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    task.cancel()
    await task

@pytest.mark.timeout(1)
async def test_leaves_a_process_to_its_finally(tmp_path):
    process = await asyncio.create_subprocess_exec(*SLEEP)
    print(f"process {process.pid} is left")
    try:
        await process.wait()
    finally:
        process.kill()
        await process.wait()

@pytest.mark.timeout(1)
def test_leaves_a_process_and_a_thread():
    print(f"process {subprocess.Popen(SLEEP).pid} is left")
    threading.Thread(target=waits_in_a_thread, daemon=True).start()
    threading.Event().wait()

def waits_in_a_thread():
    threading.Event().wait()

def test_after_them():
    pass
"""
DEADLOCK = """
import ctypes

def test_waits_for_a_lock_in_native_code():
    lock = ctypes.PyDLL(None).pthread_mutex_lock
    mutex = ctypes.create_string_buffer(64)
    lock(mutex)
    lock(mutex)
"""


def _run(folder: Path, tests: str, *options: str) -> subprocess.CompletedProcess[str]:
    """The suite's own configuration on other tests."""
    (folder / "test_hangs.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "setup.cfg"), f"--rootdir={folder}", *options]
    return subprocess.run(
        [*command, "-p", "tests.support.time_limits", "-p", "no:cacheprovider", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_tests_that_hang_fail(tmp_path: Path) -> None:
    """The others run; a task that ignores every cancellation costs the teardown's limit, too; no process is left."""
    done = _run(tmp_path, HANGS)
    assert "3 failed, 1 passed, 1 error" in done.stdout
    assert done.stdout.count("Failed: Timeout (>1.0s) from pytest-timeout.") >= 3
    assert "in waits_in_a_thread" in done.stdout
    assert ", in deaf\n" in done.stdout
    left = [int(line.split()[1]) for line in done.stdout.splitlines() if line.endswith("is left")]
    assert len(left) == 2
    assert not any(psutil.pid_exists(pid) for pid in left)


def test_code_that_cannot_be_interrupted_ends_the_run(tmp_path: Path) -> None:
    """With the stack that it hangs in."""
    done = _run(tmp_path, DEADLOCK, "-o", "timeout=1", "-o", "faulthandler_timeout=2")
    assert done.returncode == 1
    assert "Timeout (0:00:02)!" in done.stderr
    assert "in test_waits_for_a_lock_in_native_code" in done.stderr
