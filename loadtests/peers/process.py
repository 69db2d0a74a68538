"""Runs a server as a child process in its own session, measures it, and ends all its processes. Linux only."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from loadtests.service import interrupts_deferred

_POLL_SECONDS = 0.01
_TICKS = os.sysconf("SC_CLK_TCK")
END_SECONDS = 15.0
"""Seconds between SIGTERM and SIGKILL."""


@dataclass(frozen=True)
class Running:
    """A running child process that leads its own session. ``started`` is in ``time.perf_counter`` seconds."""

    process: subprocess.Popen[bytes]
    log: Path
    started: float

    def alive(self) -> bool:
        """Return whether the process itself still runs."""
        return self.process.poll() is None

    def peak_rss(self) -> int:
        """Return the sum, in bytes, of the peak memory of all running processes of the session."""
        return sum(_peak(pid) for pid in session_members(self.process.pid))

    def cpu_seconds(self) -> float:
        """Return the processor time of the session's running processes and of their children that have ended."""
        return sum(_cpu_seconds(pid) for pid in session_members(self.process.pid))

    def said(self) -> str:
        """Return the end of its output."""
        return self.log.read_text(errors="replace")[-2000:]

    def until(self, done: Callable[[], bool], seconds: float, what: str) -> float:
        """Poll until ``done`` returns True.

        Args:
            done: the condition.
            seconds: the time limit, counted from the process's start.
            what: the condition's name, for the error message.

        Returns:
            Seconds since the process's start.

        Raises:
            RuntimeError: the process has ended or the time is up; the message ends with its log.
        """
        while (since := time.perf_counter() - self.started) < seconds and self.alive():
            if done():
                return time.perf_counter() - self.started
            time.sleep(_POLL_SECONDS)
        raise RuntimeError(f"{what}: not after {since:.0f} s (exit status {self.process.poll()}):\n{self.said()}")


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path, end_seconds: float = END_SECONDS
) -> Iterator[Running]:
    """Run a command in its own session during the block; afterwards all processes of the session are ended.

    Args:
        command: the program and its arguments.
        environment: variables that override those of this process.
        folder: the working directory.
        log: the file for its output.
        end_seconds: the time between SIGTERM and SIGKILL.
    """
    with log.open("wb") as output:
        started = time.perf_counter()
        process = None
        try:
            with interrupts_deferred():
                process = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=os.environ | environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            yield Running(process, log, started)
        finally:
            if process:
                _end(process, end_seconds)


def _end(process: subprocess.Popen[bytes], end_seconds: float) -> None:
    """End the processes of the session that a process leads."""
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(end_seconds)
    finally:  # also after a second Ctrl-C during that wait
        while members := session_members(process.pid):  # its children may outlive it
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.poll()  # reaps it
            time.sleep(_POLL_SECONDS)
        process.wait()


def session_members(session: int) -> list[int]:
    """Return the ids of a session's processes that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # the process has just ended
                state, _, _, its_session, *_ = _stat(entry)
                if int(its_session) == session and state not in "ZX":
                    found.append(int(entry.name))
    return found


def busy_seconds() -> float:
    """Return the processor time that the whole machine has used, with the time stolen by other virtual machines."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _cpu_seconds(pid: int) -> float:
    with suppress(OSError):
        return sum(map(int, _stat(Path(f"/proc/{pid}"))[11:15])) / _TICKS  # utime, stime, cutime, cstime
    return 0.0


def _stat(folder: Path) -> list[str]:
    """Return the fields of proc(5) after the name, which may contain anything: state, parent, group, session..."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def _peak(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
