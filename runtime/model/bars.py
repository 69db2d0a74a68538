"""A tqdm class that turns other libraries' progress bars into progress reports."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from runtime.model.progress import Progress


def bar_class(progress: Progress, stage: str) -> type[Any]:
    """Return a subclass of tqdm that reports progress instead of drawing a bar.

    Args:
        progress: called with the stage and the fraction done.
        stage: name of the stage to report.
    """

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            kwargs["file"] = _Nowhere()
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.total:
                progress(stage, min(1.0, self.n / self.total))
            return shown

        def __iter__(self) -> Iterator[Any]:  # tqdm's own method counts without calling update
            for item in self.iterable:
                yield item
                self.update()

    return Bar


class _Nowhere(io.TextIOBase):
    """A text stream that discards what is written to it."""

    def write(self, text: str) -> int:
        return len(text)
