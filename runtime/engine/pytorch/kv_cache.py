"""The paged KV cache: the keys and values of all sequences, in the blocks of one pool on the device."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from runtime.model.config import DecoderConfig

BLOCK_TOKENS = 16


class PagedKV:
    """A pool of KV blocks, each of which stores ``BLOCK_TOKENS`` positions of one sequence.

    A block holds the keys and values of each attention layer by head, and the inputs of each convolution layer. The
    pool has one extra block at the end, number ``blocks``, which padding tokens are written to.

    Args:
        config: the decoder's configuration.
        nbytes: memory for the blocks in bytes.
        dtype: dtype of keys, values and inputs.
        device: device of the pool.

    Raises:
        ValueError: ``nbytes`` is less than one block.
    """

    def __init__(self, config: DecoderConfig, nbytes: int, dtype: torch.dtype, device: torch.device) -> None:
        self._heads = 2 * config.kv_heads
        kinds = [layer.kind for layer in config.layers]
        attentions, convolutions = kinds.count("attention"), kinds.count("convolution")
        self._indices = [kinds[:i].count(kind) for i, kind in enumerate(kinds)]  # among the layers of the same kind
        values = attentions * 2 * config.kv_width + convolutions * config.hidden  # of one position
        self.block_bytes = values * BLOCK_TOKENS * dtype.itemsize
        self.blocks = nbytes // self.block_bytes
        if not self.blocks:
            raise ValueError(f"{nbytes} bytes hold no KV block of {self.block_bytes}")
        shape = (self.blocks + 1, self._heads, BLOCK_TOKENS, config.padded_head_dim)
        self.data = _zeros((attentions, *shape), dtype, device)
        self.inputs = _zeros((convolutions, self.blocks + 1, BLOCK_TOKENS, config.hidden), dtype, device)
        self._head = torch.arange(self._heads, device=device)

    def slot_indices(self, slots: Tensor) -> Tensor:
        """Convert tokens' slots to the indices that ``write`` takes.

        Args:
            slots: [M] block x ``BLOCK_TOKENS`` + offset in the block.

        Returns:
            [M * 2 kv_heads] indices, one per token and head, keys first.
        """
        block, offset = slots[:, None] // BLOCK_TOKENS, slots[:, None] % BLOCK_TOKENS
        return ((block * self._heads + self._head) * BLOCK_TOKENS + offset).flatten()

    def write(self, layer: int, slot_indices: Tensor, keys_values: Tensor) -> None:
        """Write tokens' keys and values to an attention layer of the cache.

        Values that are not finite become 0: attention multiplies masked values with 0, and 0 x NaN is NaN, so they
        would corrupt the next sequence that gets the block.

        Args:
            layer: the layer's index.
            slot_indices: [M * 2 kv_heads] indices from ``slot_indices``.
            keys_values: [M, 2 kv_heads, D], keys first.
        """
        finite = torch.nan_to_num(keys_values, nan=0.0, posinf=0.0, neginf=0.0)
        data = self.data[self._indices[layer]]
        data.view(-1, finite.shape[-1]).index_copy_(0, slot_indices, finite.flatten(0, 1))

    def page_indices(self, tables: Tensor) -> Tensor:
        """Convert block tables to the indices that ``read`` takes.

        Args:
            tables: [B, N] blocks in order of position.

        Returns:
            [2 * B * kv_heads * N] indices, keys first.
        """
        heads = self._head.view(2, 1, -1, 1)
        return (tables[None, :, None, :] * self._heads + heads).flatten()

    def read(self, layer: int, page_indices: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Gather the keys and values of block tables into contiguous tensors.

        Args:
            layer: the layer's index, an attention layer.
            page_indices: [2 * B * kv_heads * N] indices from ``page_indices``.
            rows: number of block tables B.

        Returns:
            Keys and values, [B, kv_heads, N * BLOCK_TOKENS, D] each.
        """
        data = self.data[self._indices[layer]]
        gathered = data.view(-1, BLOCK_TOKENS * data.shape[-1]).index_select(0, page_indices)
        keys, values = gathered.view(2, rows, self._heads // 2, -1, data.shape[-1]).unbind(0)
        return keys, values

    def write_inputs(self, layer: int, slots: Tensor, inputs: Tensor) -> None:
        """Write tokens' inputs [M, H] to a convolution layer of the cache, at slots [M].

        Only the sequence itself reads them, so values that are not finite are kept and make the row fail.
        """
        stored = self.inputs[self._indices[layer]]
        stored.view(-1, stored.shape[-1]).index_copy_(0, slots, inputs.to(stored.dtype))

    def read_inputs(self, layer: int, slots: Tensor) -> Tensor:
        """Return the inputs [..., H] of a convolution layer at slots [...]."""
        stored = self.inputs[self._indices[layer]]
        return stored.view(-1, stored.shape[-1])[slots]

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block onto another, in all layers."""
        for pool in (self.data, self.inputs):
            pool[:, target].copy_(pool[:, source])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate zeros. On a CPU they are the system's zero pages, which become resident only when they are written."""
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
