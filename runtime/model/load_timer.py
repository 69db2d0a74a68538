"""Measures the time that each phase of a model load takes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Phases:
    """Wall-clock seconds of each phase of a load, in the order in which the phases began.

    ``imports`` counts from the start of the process and is present only after a call of ``imports``; ``convert`` and
    ``pack`` only if there was no snapshot. ``weights`` is the time by which checking the weights took longer than
    building the tokenizer, which runs in parallel.
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the block as a phase; times of blocks with the same name are added."""
        started = time.perf_counter()
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def imports(self) -> None:
        """Record the process's age as the phase ``imports``; correct for a process that does nothing but load."""
        self.seconds["imports"] = process_age()


def process_age() -> float:
    """Return the seconds since this process began, to a hundredth; without ``/proc``, its CPU time."""
    try:
        # Fields 3 and up follow the name in brackets, which may contain anything; the 22nd is the start (proc(5)).
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except OSError:
        return time.process_time()
