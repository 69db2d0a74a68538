"""The pool of KV blocks."""

from __future__ import annotations

import pytest
import torch

from runtime.engine.pytorch.kv_cache import BLOCK_TOKENS, PagedKV
from runtime.host import resident_memory
from tests.support.random_decoder import CONVOLUTION, PLAIN, describe

CONFIG = describe(PLAIN, PLAIN)
BLOCK = 2 * 2 * 2 * BLOCK_TOKENS * 16 * 4  # layers, keys and values, heads, positions, size, bytes
MIXED = describe(CONVOLUTION, PLAIN, CONVOLUTION, head_dim=10, convolution_width=3)


def pool(blocks: int = 5) -> PagedKV:
    return PagedKV(CONFIG, blocks * BLOCK, torch.float32, torch.device("cpu"))


def test_it_fills_the_memory_it_is_given() -> None:
    """As many blocks as fit whole; memory for less than one is refused."""
    assert pool().block_bytes == BLOCK
    assert PagedKV(CONFIG, 3 * BLOCK + BLOCK - 1, torch.float32, torch.device("cpu")).blocks == 3
    assert PagedKV(CONFIG, 3 * BLOCK, torch.bfloat16, torch.device("cpu")).blocks == 6
    with pytest.raises(ValueError, match="no KV block"):
        PagedKV(CONFIG, BLOCK - 1, torch.float32, torch.device("cpu"))


def test_what_is_written_is_read_in_order_of_position() -> None:
    """Positions scattered over blocks come back in the order of each row's table, keys apart from values."""
    kv = pool()
    tables = torch.tensor([[3, 1], [0, 4]])
    stored = torch.randn(2, 2 * BLOCK_TOKENS, 4, 16)  # [rows, positions, kv heads twice, size]
    slots = (tables[:, :, None] * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)).flatten()
    kv.write(1, kv.slot_indices(slots), stored.flatten(0, 1))
    keys, values = kv.read(1, kv.page_indices(tables), 2)
    assert torch.equal(keys, stored[:, :, :2].transpose(1, 2))
    assert torch.equal(values, stored[:, :, 2:].transpose(1, 2))
    assert not kv.read(0, kv.page_indices(tables), 2)[0].any()


def test_numbers_that_are_none_are_not_stored() -> None:
    """Whoever gets the block next must not be spoilt by them, not even where a mask hides them."""
    kv = pool()
    bad = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.0]).repeat(4).expand(1, 4, 16)
    kv.write(0, kv.slot_indices(torch.tensor([2 * BLOCK_TOKENS + 7])), bad)
    assert kv.data[0, 2, :, 7].tolist() == [[0, 0, 0, 1] * 4] * 4


def test_copying_a_block_copies_all_layers() -> None:
    """The target holds what the source holds, in layers of both kinds, and nothing else has changed."""
    kv = PagedKV(MIXED, 10**5, torch.float32, torch.device("cpu"))
    for data in (kv.data, kv.inputs):
        data.copy_(torch.randn(data.shape))
    before = [kv.data.clone(), kv.inputs.clone()]
    kv.copy_block(1, 4)
    for data, old in zip((kv.data, kv.inputs), before, strict=True):
        assert torch.equal(data[:, 4], old[:, 1])
        assert torch.equal(data[:, :4], old[:, :4])


def test_convolution_layers_store_their_inputs() -> None:
    """A position takes the layer's width there, and keys and values as padded elsewhere; layers are told apart."""
    kv = PagedKV(MIXED, 10**5, torch.float32, torch.device("cpu"))
    assert kv.block_bytes == BLOCK_TOKENS * 4 * (2 * 48 + 2 * 2 * 16)
    slots = torch.tensor([3, 40, 41])
    inputs = torch.randn(2, 3, 48)
    kv.write_inputs(0, slots, inputs[0])
    kv.write_inputs(2, slots, inputs[1])
    assert torch.equal(kv.read_inputs(0, slots), inputs[0])
    order = torch.tensor([[2, 0], [1, 1]])
    assert torch.equal(kv.read_inputs(2, slots[order]), inputs[1][order])
    assert not kv.data.any()


def test_memory_is_taken_up_when_it_is_written() -> None:
    """A pool far larger than what is used costs a CPU nothing until then."""
    before = resident_memory()
    large = PagedKV(CONFIG, 512 << 20, torch.float32, torch.device("cpu"))
    assert large.blocks > 1000
    assert resident_memory() - before < 64 << 20
    assert not large.data[0, -1].any()
