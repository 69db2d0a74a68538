"""Where a load's time goes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Phases:
    """Wall-clock seconds of each phase, in the order in which they began.

    ``imports`` counts from the start of the process and is there only if asked for; ``convert`` and ``pack`` only if
    there was no snapshot. ``weights`` is what checking them took longer than building the tokenizer beside it.
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside; several times under one name add up."""
        started = time.perf_counter()
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def imports(self) -> None:
        """Take all that happened in this process so far for imports: right for a process that just loads."""
        self.seconds["imports"] = process_age()


def process_age() -> float:
    """Seconds since this process began, to a hundredth; where there is no /proc, the time it computed."""
    try:
        # Fields 3 and up stand behind the name in brackets, which may hold anything; the 22nd is the start (proc(5)).
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except OSError:
        return time.process_time()
