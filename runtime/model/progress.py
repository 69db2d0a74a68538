"""Shows the progress of a load: as a bar on a terminal, as log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

Progress = Callable[[str, float | None], None]
"""Callback with the name of the current stage and the fraction of it that is done (0 to 1; None if unknown)."""

_log = logging.getLogger("warmstart.load")
_LOG_EVERY = 5.0  # seconds between two log lines of one stage


class LoadProgress:
    """A ``Progress`` callback that draws a bar on a terminal and otherwise writes log lines.

    Args:
        name: the model's id.
        stream: the stream for the bar, which is drawn only if it is a terminal; standard error by default.
    """

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        self._name = name
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._stage = ""
        self._logged = 0.0

    def __call__(self, stage: str, fraction: float | None) -> None:
        """Show the progress of a stage. See ``Progress``."""
        if self._stream.isatty():
            self._draw(stage, fraction)
        elif stage != self._stage or time.monotonic() - self._logged >= _LOG_EVERY:
            self._logged = time.monotonic()
            share = "" if fraction is None else f" {fraction:.0%}"
            _log.info("%s: %s%s", self._name, stage, share)
        self._stage = stage

    def _draw(self, stage: str, fraction: float | None) -> None:
        """Draw or update the bar of a stage."""
        if stage != self._stage:
            self.close()
            from tqdm import tqdm  # importing it takes a tenth of the start-up time, and only terminals need it

            self._bar = tqdm(
                total=100,
                desc=f"{self._name}: {stage}",
                file=self._stream,
                mininterval=0,  # drawn at every per cent and at no other time
                leave=False,  # the next stage uses the same line
                bar_format="{desc} {bar} {percentage:3.0f}%",
            )
        if fraction is not None and (step := round(100 * fraction) - self._bar.n):
            self._bar.update(step)

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
