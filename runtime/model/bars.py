"""Other libraries' progress bars, turned into reports."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from runtime.model.progress import Progress


def bar_class(progress: Progress, stage: str) -> type[Any]:
    """A tqdm that reports instead of drawing.

    Args:
        progress: told how far it is.
        stage: what is being done.
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

        def __iter__(self) -> Iterator[Any]:  # tqdm's own counts without calling update
            for item in self.iterable:
                yield item
                self.update()

    return Bar


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)
