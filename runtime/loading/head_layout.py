"""Arranges the rows of queries, keys and values as the decoder reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from runtime.loading.checkpoint_parts import Array, Read
from runtime.model.checkpoint_layout import CheckpointLayout
from runtime.model.config import DecoderConfig

Parts = Callable[[], Sequence[Array]]


class HeadLayout:
    """The arrangement of the heads of one checkpoint.

    Args:
        config: the decoder's configuration.
        layout: how the checkpoint arranges its tensors.
    """

    def __init__(self, config: DecoderConfig, layout: CheckpointLayout) -> None:
        self._config = config
        self._layout = layout

    def split(self, joint: Read) -> Parts:
        """Return a function that takes the rows of joint queries, keys and values apart."""
        config = self._config
        heads, kv_heads, head_dim = config.heads, config.kv_heads, config.head_dim

        def parts() -> Sequence[Array]:
            values = joint()
            if self._layout.qkv_order == "blocks":
                return np.split(values, [heads * head_dim, (heads + kv_heads) * head_dim])
            # For each key head: its queries, its key and its value. With one query for each, this is "heads", too.
            rest = values.shape[1:]
            groups = values.reshape(kv_heads, heads // kv_heads + 2, head_dim, *rest)
            return [part.reshape(-1, *rest) for part in (groups[:, :-2], groups[:, -2], groups[:, -1])]

        return parts

    def rotated(self, heads: Array, i: int) -> Array:
        """Arrange the rows [heads, D, ...] of queries or keys for the rotation of halves instead of pairs."""
        index = self._config.layers[i].rotation
        if not self._layout.interleaved_rotation or index is None:
            return heads
        width = 2 * len(self._config.rotations[index].frequencies)
        order = [*range(0, width, 2), *range(1, width, 2), *range(width, self._config.head_dim)]
        return heads[:, order]

    def padded(self, heads: Array, axis: int) -> Array:
        """Pad the heads' width with zeros."""
        missing = self._config.padded_head_dim - self._config.head_dim
        return np.pad(heads, [(0, missing if n == axis else 0) for n in range(heads.ndim)]) if missing else heads
