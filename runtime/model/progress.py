"""Shows the progress of a load: as a bar on a terminal, as log lines elsewhere; also that of other libraries."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

Progress = Callable[[str, float | None], None]
"""Callback with the name of the current stage and the fraction of it that is done (0 to 1; None if unknown)."""

_log = logging.getLogger("warmstart.load")
_LOG_SECONDS = 5.0  # between two log lines of one stage


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
        """Show that a fraction of a stage is done."""
        if self._stream.isatty():
            self._draw(stage, fraction)
        elif stage != self._stage or time.monotonic() - self._logged >= _LOG_SECONDS:
            self._logged = time.monotonic()
            percentage = "" if fraction is None else f" {fraction:.0%}"
            _log.info("%s: %s%s", self._name, stage, percentage)
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


def bar_class(progress: Progress, stage: str) -> type[Any]:
    """Return a subclass of tqdm for other libraries to use, which reports progress instead of drawing a bar.

    Args:
        progress: called with the stage and the fraction done.
        stage: name of the stage to report.
    """
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            kwargs["file"] = _NullStream()
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            displayed = super().update(n)
            if self.total:
                progress(stage, min(1.0, self.n / self.total))
            return displayed

        def __iter__(self) -> Iterator[Any]:  # tqdm's own method counts without calling update
            for item in self.iterable:
                yield item
                self.update()

    return Bar


class _NullStream(io.TextIOBase):
    """A text stream that discards what is written to it."""

    def write(self, text: str) -> int:
        return len(text)
