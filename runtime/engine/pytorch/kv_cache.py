"""Keys and values of all sequences, in blocks of one pool on the device."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from runtime.model.config import DecoderConfig

BLOCK_TOKENS = 16


class PagedKV:
    """The pool. A block holds, for each layer, keys and values of ``BLOCK_TOKENS`` positions, each head's together.

    There is one block more than asked for, behind the others: what fills a batch up to its shape writes there.

    Args:
        config: the decoder's shape.
        nbytes: memory to fill with blocks.
        dtype: of keys and values.
        device: where they are.

    Raises:
        ValueError: not even one block fits.
    """

    def __init__(self, config: DecoderConfig, nbytes: int, dtype: torch.dtype, device: torch.device) -> None:
        self._heads = 2 * config.kv_heads
        shape = (self._heads, BLOCK_TOKENS, config.head_dim)
        self.block_bytes = config.layers * self._heads * BLOCK_TOKENS * config.head_dim * dtype.itemsize
        self.blocks = nbytes // self.block_bytes
        if not self.blocks:
            raise ValueError(f"{nbytes} bytes hold no KV block of {self.block_bytes}")
        self.data = _zeros((config.layers, self.blocks + 1, *shape), dtype, device)
        self._head = torch.arange(self._heads, device=device)

    def places(self, slots: Tensor) -> Tensor:
        """Where tokens' keys and values belong.

        Args:
            slots: [M] block x ``BLOCK_TOKENS`` + offset in it.

        Returns:
            [M * 2 kv_heads] for ``write``.
        """
        block, offset = slots[:, None] // BLOCK_TOKENS, slots[:, None] % BLOCK_TOKENS
        return ((block * self._heads + self._head) * BLOCK_TOKENS + offset).flatten()

    def write(self, layer: int, places: Tensor, keys_values: Tensor) -> None:
        """Store tokens' keys and values.

        Numbers that are none become 0: attention multiplies what it must not see with 0, and 0 x NaN is NaN, so that
        they would spoil whichever sequence gets the block next.

        Args:
            layer: whose.
            places: [M * 2 kv_heads] from ``places``.
            keys_values: [M, 2 kv_heads, D], keys first.
        """
        finite = torch.nan_to_num(keys_values, nan=0.0, posinf=0.0, neginf=0.0)
        self.data[layer].view(-1, finite.shape[-1]).index_copy_(0, places, finite.flatten(0, 1))

    def pages(self, tables: Tensor) -> Tensor:
        """Where rows' keys and values are.

        Args:
            tables: [B, N] blocks in order of position.

        Returns:
            [2 * B * kv_heads * N] for ``read``.
        """
        heads = self._head.view(2, 1, -1, 1)
        return (tables[None, :, None, :] * self._heads + heads).flatten()

    def read(self, layer: int, pages: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Copy rows' keys and values together.

        Args:
            layer: whose.
            pages: from ``pages``.
            rows: how many.

        Returns:
            Keys and values, [B, kv_heads, N * BLOCK_TOKENS, D] each.
        """
        data = self.data[layer]
        gathered = data.view(-1, BLOCK_TOKENS * data.shape[-1]).index_select(0, pages)
        keys, values = gathered.view(2, rows, self._heads // 2, -1, data.shape[-1]).unbind(0)
        return keys, values

    def copy_block(self, source: int, target: int) -> None:
        """Copy all layers' keys and values of a block onto another."""
        self.data[:, target].copy_(self.data[:, source])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On a CPU the system's zero pages: memory that is taken up when it is written, not when it is asked for."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
