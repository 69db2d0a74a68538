"""Short convolutions over the paged cache."""

from __future__ import annotations

import torch

from runtime.engine.pytorch.convolution import convolve, history_slots
from runtime.engine.pytorch.kv_cache import BLOCK_TOKENS, PagedKV
from tests.support.random_decoder import CONVOLUTION, PLAIN, describe


def test_slots_are_those_of_the_positions_before() -> None:
    """Through the blocks of each token's own sequence, in the order of the tokens; none before a sequence's start."""
    decode = torch.tensor([[2], [0]]), torch.tensor([[5, 7], [3, 9]])
    chunk = torch.tensor([[1, 3]]), torch.tensor([[4, 8]])
    positions = torch.tensor([16, 0, 31, 1])
    slots = history_slots([decode, chunk], positions, torch.tensor([1, 2, 0, 3]), 3)
    assert slots.tolist() == [
        [3 * BLOCK_TOKENS + 14, 3 * BLOCK_TOKENS + 15, 9 * BLOCK_TOKENS],
        [-1, -1, 4 * BLOCK_TOKENS],
        [7 * BLOCK_TOKENS + 13, 7 * BLOCK_TOKENS + 14, 7 * BLOCK_TOKENS + 15],
        [-1, 4 * BLOCK_TOKENS, 4 * BLOCK_TOKENS + 1],
    ]


def test_each_channel_is_convolved_along_the_positions() -> None:
    """The last weight is that of the token itself; positions before the start count as zeros."""
    kv = PagedKV(describe(PLAIN, CONVOLUTION, convolution_width=3), 10**6, torch.float32, torch.device("cpu"))
    kv.inputs.fill_(float("nan"))  # what other sequences have left
    inputs, weight, bias = torch.randn(5, 48), torch.randn(3, 48), torch.randn(48)
    kv.write_inputs(1, torch.arange(5), inputs)
    history = torch.tensor([[max(-1, position - back) for back in (2, 1, 0)] for position in range(5)])
    expected = [
        sum(weight[2 - back] * inputs[position - back] for back in range(3) if position >= back)
        for position in range(5)
    ]
    assert torch.allclose(convolve(kv, 1, history, weight, None), torch.stack(expected), atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(convolve(kv, 1, history, weight, bias), torch.stack(expected) + bias, atol=1e-5)  # type: ignore[arg-type]
