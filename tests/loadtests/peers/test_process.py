from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from loadtests.peers.process import busy_seconds, running, session_members

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setpgid(0, 0)  # out of the group, as some servers' workers are
print("up", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_nothing_of_a_server_that_ignores_sigterm_is_left(tmp_path: Path, error: type[BaseException] | None) -> None:
    """Nor of the workers that it started, whatever ends the block, Ctrl-C included."""
    log, sessions = tmp_path / "log", []

    def block() -> None:
        with running((sys.executable, "-c", STUBBORN), {}, tmp_path, log, end_seconds=0.1) as child:
            sessions.append(child.process.pid)
            child.until(lambda: log.read_text().count("up") == 2, 30, "up")
            assert len(session_members(child.process.pid)) == 2
            assert child.peak_rss() > 4_000_000
            if error:
                raise error

    with pytest.raises(error) if error else nullcontext():
        block()
    assert session_members(sessions[0]) == []


def test_a_server_may_end_by_itself_after_sigterm(tmp_path: Path) -> None:
    """It is not killed while it does: its last words are in its log."""
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), print('last words', flush=True), sys.exit(3)))\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )
    with running((sys.executable, "-c", program), {}, tmp_path, tmp_path / "log") as child:
        child.until(lambda: "up" in child.said(), 30, "up")
    assert child.process.returncode == 3
    assert "last words" in child.said()


def test_a_server_that_ends_or_never_comes_is_told_with_its_log(tmp_path: Path) -> None:
    """The wait ends with the process, or with its time."""
    program = "import os; print(os.environ['WORD'], flush=True); raise SystemExit(4)"
    with (
        pytest.raises(RuntimeError, match=r"(?s)live: not after .* \(exit status 4\).*planted"),
        running((sys.executable, "-c", program), {"WORD": "planted"}, tmp_path, tmp_path / "log") as child,
    ):
        child.until(lambda: False, 60, "live")
    with (
        pytest.raises(RuntimeError, match="exit status None"),
        running((sys.executable, "-c", "import time; time.sleep(60)"), {}, tmp_path, tmp_path / "log") as child,
    ):
        child.until(lambda: False, 0.1, "live")


def test_processor_time_is_that_of_the_session(tmp_path: Path) -> None:
    """Children that ended count too; the machine's own time is at least that."""
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    program = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {spin!r}]); time.sleep(600)"
    before = busy_seconds()
    with running((sys.executable, "-c", program), {}, tmp_path, tmp_path / "log") as child:
        child.until(lambda: child.cpu_seconds() >= 0.3, 60, "spun")
        child.until(lambda: len(session_members(child.process.pid)) == 1, 60, "its child has ended")
        assert child.cpu_seconds() >= 0.3
        assert busy_seconds() - before >= 0.25  # the ticks of several counters
