"""Progress of a load: a bar on a terminal, log lines elsewhere, and the last word kept for ``/models``."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

Progress = Callable[[str, float | None], None]
"""Called with what is being done and how far it is (0 to 1, None when unknown)."""

_log = logging.getLogger("warmstart.load")
_LOG_EVERY = 5.0  # seconds between two log lines of one stage


class LoadProgress:
    """Shows progress as it fits where the output goes.

    Args:
        name: the model's.
        stream: where a bar would go; a bar is drawn only if it is a terminal.
    """

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        self._name = name
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._stage = ""
        self._logged = 0.0

    def __call__(self, stage: str, fraction: float | None) -> None:
        """See ``Progress``."""
        if self._stream.isatty():
            self._draw(stage, fraction)
        elif stage != self._stage or time.monotonic() - self._logged >= _LOG_EVERY:
            self._logged = time.monotonic()
            share = "" if fraction is None else f" {fraction:.0%}"
            _log.info("%s: %s%s", self._name, stage, share)
        self._stage = stage

    def _draw(self, stage: str, fraction: float | None) -> None:
        if stage != self._stage:
            self.close()
            from tqdm import tqdm  # a tenth of the time to listening, and only for terminals

            self._bar = tqdm(
                total=100,
                desc=f"{self._name}: {stage}",
                file=self._stream,
                mininterval=0,  # drawn at every per cent, and only then
                leave=False,  # a finished stage makes room for the next on the same line
                bar_format="{desc} {bar} {percentage:3.0f}%",
            )
        if fraction is not None and (step := round(100 * fraction) - self._bar.n):
            self._bar.update(step)

    def close(self) -> None:
        """End the bar's line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
