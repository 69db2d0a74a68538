"""Finds a checkpoint's tensors under the names of its layout, and records which are missing, misshapen or left over."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from runtime.loading.tensor_source import TensorSource
from runtime.model.checkpoint_layout import CheckpointLayout

_Shape = tuple[int, ...]
_Read = Callable[[], NDArray[np.float32]]

WRAPPERS = r"^(?:(?:module|_orig_mod)\.)+"
"""Pattern of the prefixes that DataParallel, FSDP and ``torch.compile`` add to the names of a model's tensors."""


def stored_shapes(shape: _Shape) -> tuple[_Shape, ...]:
    """Return the shapes that a tensor may be stored in: its own, or without a first dimension of 1 (GGUF files)."""
    return (shape, shape[1:]) if shape[0] == 1 else (shape,)


class StoredTensors:
    """The tensors of a checkpoint by their names without prefixes; records which were used and which are at fault.

    Attributes:
        missing: names of missing tensors, with the usual prefix.
        misshapen: the expected shapes of tensors with other ones, by their names in the checkpoint.
    """

    def __init__(self, layout: CheckpointLayout, source: TensorSource) -> None:
        self.source = source
        self.missing: set[str] = set()
        self.misshapen: dict[str, _Shape] = {}
        self._layout = layout
        self._names: dict[str, str] = {}
        self._left: set[str] = set()  # names that no tensor of the decoder has
        for full in source.names():
            name = self._bare(full)
            if name in self._names:
                self._left.add(full)
            else:
                self._names[name] = full
        self._used: set[str] = set()

    def _bare(self, name: str) -> str:
        """Return a tensor's name without the prefixes of wrappers and of the base model, as newer versions write it."""
        name = re.sub(WRAPPERS, "", name)
        matching = [prefix for prefix in self._layout.prefixes if name.startswith(prefix)]
        name = name[len(max(matching, key=len)) :] if matching else name
        for pattern, new in self._layout.renamed.items():
            name = re.sub(f"^(?:{pattern})", new, name)
        return name

    def name(self, name: str) -> str | None:
        """Return the checkpoint's name of a tensor; None if it does not have it."""
        return self._names.get(name)

    def use(self, name: str, *shapes: _Shape) -> _Read:
        """Return a function that reads a tensor, and record whether it is missing or has none of the shapes."""
        full = self._names.get(name)
        if full is None:
            head = self._layout.names.get("head")
            base = head is None or not name.startswith(head)
            prefix = self._layout.prefixes[0] if self._layout.prefixes and base else ""
            self.missing.add(prefix + name)
            return lambda: np.zeros(shapes[0], np.float32)
        self._used.add(full)
        if self.source.shape(full) not in shapes:
            self.misshapen[full] = shapes[0]
        return lambda: self.source.read(full)

    def rows(self, name: str) -> Callable[[int, int], NDArray[np.float32]] | None:
        """Return a function that reads some rows of a tensor; None if the checkpoint does not have it."""
        full = self._names.get(name)
        return None if full is None else functools.partial(self.source.read_rows, full)

    def discard(self, name: str) -> None:
        """Record a tensor, if there is one, as known although the decoder does not need it."""
        if (full := self._names.get(name)) is not None:
            self._used.add(full)

    def left(self) -> set[str]:
        """Return the names of tensors that are neither used nor ignored."""
        return self._left | (set(self._names.values()) - self._used - self.ignored())

    def ignored(self) -> set[str]:
        """Return the names of tensors that the decoder does not need, as the layout says."""
        patterns = [re.compile(pattern) for pattern in self._layout.ignored]
        return {
            full
            for bare, full in self._names.items()
            if any(p.match(name) for p in patterns for name in (re.sub(WRAPPERS, "", full), bare))
        }
