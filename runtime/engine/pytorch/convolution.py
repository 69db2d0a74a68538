"""The convolution of gated short convolution layers (LFM2, arXiv:2511.23404) over the paged cache.

The cache keeps the convolution's input of every position, as it keeps keys and values in attention layers. So prefix
sharing, preemption and speculation need nothing of their own for these layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.engine.pytorch.kv_cache import BLOCK_TOKENS, PagedKV


def history_slots(groups: Sequence[tuple[Tensor, Tensor]], positions: Tensor, outputs: Tensor, width: int) -> Tensor:
    """Return the cache slots that the convolution reads for each token. It is computed once for all layers.

    Args:
        groups: ([B, W] tokens, [B, N] block tables) of each tile width, see ``attention.Tiles``.
        positions: [M] positions of the tokens in their sequences.
        outputs: [M] index of each token among the tokens of all groups.
        width: positions that the convolution reads, the token's own included.

    Returns:
        [M, width] slots, oldest position first; -1 before a sequence's start.
    """
    offsets = torch.arange(1 - width, 1, device=positions.device)
    parts = []
    for tokens, tables in groups:
        read = positions[tokens][..., None] + offsets  # [B, W, width]
        blocks = tables.gather(1, (read.clamp(min=0) // BLOCK_TOKENS).flatten(1)).view_as(read)
        parts.append(torch.where(read < 0, -1, blocks * BLOCK_TOKENS + read % BLOCK_TOKENS).flatten(0, 1))
    return torch.cat(parts)[outputs]


def convolve(kv: PagedKV, layer: int, history: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each channel of the inputs in the cache along the positions.

    Args:
        kv: the cache, which already contains the tokens' own inputs.
        layer: the layer's index.
        history: [M, width] slots from ``history_slots``.
        weight: [width, H] float32, oldest position first.
        bias: [H] float32, or None.

    Returns:
        [M, H] float32.
    """
    inputs = kv.read_inputs(layer, history.clamp(min=0)).float()  # [M, width, H]
    products = torch.where(history[..., None] < 0, 0, inputs) * weight
    total = products[:, 0]
    for tap in range(1, len(weight)):  # in a fixed order, whatever the number of tokens
        total = total + products[:, tap]
    return total if bias is None else total + bias
