"""Reads a checkpoint's tensors by the parts of a model, as a ``CheckpointLayout`` names and arranges them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.loading.stored_tensors import StoredTensors
from runtime.model.checkpoint_layout import CheckpointLayout

Array = NDArray[np.float32]
Shape = tuple[int, ...]
Read = Callable[[], Array]


class CheckpointParts:
    """The parts of one checkpoint. Asking for a tensor marks it as used, and checks its shape.

    Args:
        layout: how the checkpoint names and arranges its tensors.
        stored: its tensors.
        layers: number of the model's layers.
    """

    def __init__(self, layout: CheckpointLayout, stored: StoredTensors, layers: int) -> None:
        self._layout = layout
        self.stored = stored
        self._layers = layers

    def weight(self, part: str, shape: Shape, i: int | None = None) -> Read:
        """Return a function that reads a part's weights, [outputs, inputs] for a matrix."""
        name = self.name(part, i)
        if part not in self._layout.transposed:
            return self.stored.use(name, shape)
        read = self.stored.use(name, shape[::-1])
        return lambda: read().T

    def name(self, part: str, i: int | None) -> str:
        """Return the name of a part's weights in the checkpoint."""
        name = self._layout.names[part]
        return (name if part in self._layout.plain else f"{name}.weight").replace("{i}", str(i))

    def bias(self, part: str, width: int, i: int | None = None) -> Read:
        """Return a function that reads a part's bias; if the layout leaves it open, zeros for a layer without one."""
        name = f"{self._layout.names[part]}.bias".replace("{i}", str(i))
        if self._layout.biases is None and self.stored.name(name) is None:
            return zeros(width)
        return self.stored.use(name, (width,))

    def bias_or_zeros(self, part: str, width: int, i: int) -> Read:
        """Return a function that reads a part's bias, or gives zeros for a part without one."""
        return self.bias(part, width, i) if self.has_bias(part) else zeros(width)

    def has_bias(self, part: str) -> bool:
        """Return whether a part has a bias, the same in all layers."""
        if self._layout.biases is not None:
            return part in self._layout.biases
        if part not in self._layout.names:
            return False
        name = f"{self._layout.names[part]}.bias"
        return any(self.stored.name(name.replace("{i}", str(i))) for i in range(self._layers))

    def by_head(self, name: str, heads: int, head_dim: int, shapes: Sequence[Shape]) -> Read:
        """Return a function that reads a tensor of all heads, or one for each head if its name has ``{h}``."""
        if "{h}" not in name:
            return self.stored.use(name, *shapes)
        reads = [self.stored.use(name.replace("{h}", str(head)), (head_dim,)) for head in range(heads)]
        return lambda: np.stack([read() for read in reads])


def zeros(width: int) -> Read:
    """Return a function that gives a bias of zeros."""
    return lambda: np.zeros(width, np.float32)
