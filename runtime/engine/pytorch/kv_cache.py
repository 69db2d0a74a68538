"""The paged KV cache: the keys and values of all sequences, in the blocks of one pool on the device."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from runtime.engine.block_pool import BLOCK_TOKENS as BLOCK_TOKENS
from runtime.model.config import DecoderConfig


class PagedKV:
    """A pool of KV blocks. A block holds, per layer and head, the keys and values of ``BLOCK_TOKENS`` positions.

    The pool has one extra block at the end, number ``blocks``, which padding tokens are written to.

    Args:
        config: the decoder's configuration.
        nbytes: memory for the blocks in bytes.
        dtype: dtype of keys and values.
        device: device of the pool.

    Raises:
        ValueError: ``nbytes`` is less than one block.
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
        """Convert tokens' slots to the indices that ``write`` takes.

        Args:
            slots: [M] block x ``BLOCK_TOKENS`` + offset in the block.

        Returns:
            [M * 2 kv_heads] indices, one per token and head, keys first.
        """
        block, offset = slots[:, None] // BLOCK_TOKENS, slots[:, None] % BLOCK_TOKENS
        return ((block * self._heads + self._head) * BLOCK_TOKENS + offset).flatten()

    def write(self, layer: int, places: Tensor, keys_values: Tensor) -> None:
        """Write tokens' keys and values to a layer of the cache.

        Values that are not finite become 0: attention multiplies masked values with 0, and 0 x NaN is NaN, so they
        would corrupt the next sequence that gets the block.

        Args:
            layer: the layer's index.
            places: [M * 2 kv_heads] indices from ``places``.
            keys_values: [M, 2 kv_heads, D], keys first.
        """
        finite = torch.nan_to_num(keys_values, nan=0.0, posinf=0.0, neginf=0.0)
        self.data[layer].view(-1, finite.shape[-1]).index_copy_(0, places, finite.flatten(0, 1))

    def pages(self, tables: Tensor) -> Tensor:
        """Convert block tables to the indices that ``read`` takes.

        Args:
            tables: [B, N] blocks in order of position.

        Returns:
            [2 * B * kv_heads * N] indices, keys first.
        """
        heads = self._head.view(2, 1, -1, 1)
        return (tables[None, :, None, :] * self._heads + heads).flatten()

    def read(self, layer: int, pages: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Gather the keys and values of block tables into contiguous tensors.

        Args:
            layer: the layer's index.
            pages: [2 * B * kv_heads * N] indices from ``pages``.
            rows: number of block tables B.

        Returns:
            Keys and values, [B, kv_heads, N * BLOCK_TOKENS, D] each.
        """
        data = self.data[layer]
        gathered = data.view(-1, BLOCK_TOKENS * data.shape[-1]).index_select(0, pages)
        keys, values = gathered.view(2, rows, self._heads // 2, -1, data.shape[-1]).unbind(0)
        return keys, values

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block onto another, in all layers."""
        self.data[:, target].copy_(self.data[:, source])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate zeros. On a CPU they are the system's zero pages, which become resident only when they are written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
