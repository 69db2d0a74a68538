"""The pool of KV blocks."""

from __future__ import annotations

import pytest
import torch

from runtime.engine.pytorch.kv_cache import BLOCK_TOKENS, PagedKV
from runtime.host import resident_memory
from runtime.model.config import DecoderConfig

CONFIG = DecoderConfig("llama", 2, 8, 16, 4, 2, 4, 50, 64, 1e-5, "silu", True, (1.0, 0.1))
BLOCK = 2 * 2 * 2 * BLOCK_TOKENS * 4 * 4  # layers, keys and values, heads, positions, size, bytes


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
    stored = torch.randn(2, 2 * BLOCK_TOKENS, 4, 4)  # [rows, positions, kv heads twice, size]
    slots = (tables[:, :, None] * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)).flatten()
    kv.write(1, kv.places(slots), stored.flatten(0, 1))
    keys, values = kv.read(1, kv.pages(tables), 2)
    assert torch.equal(keys, stored[:, :, :2].transpose(1, 2))
    assert torch.equal(values, stored[:, :, 2:].transpose(1, 2))
    assert not kv.read(0, kv.pages(tables), 2)[0].any()


def test_numbers_that_are_none_are_not_stored() -> None:
    """Whoever gets the block next must not be spoilt by them, not even where a mask hides them."""
    kv = pool()
    bad = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.0]).expand(1, 4, 4)
    kv.write(0, kv.places(torch.tensor([2 * BLOCK_TOKENS + 7])), bad)
    assert kv.data[0, 2, :, 7].tolist() == [[0, 0, 0, 1]] * 4


def test_copying_a_block_copies_all_layers() -> None:
    """The target holds what the source holds, and nothing else has changed."""
    kv = pool()
    kv.data.copy_(torch.randn(kv.data.shape))
    before = kv.data.clone()
    kv.copy_block(1, 4)
    assert torch.equal(kv.data[:, 4], before[:, 1])
    assert torch.equal(kv.data[:, :4], before[:, :4])


def test_memory_is_taken_up_when_it_is_written() -> None:
    """A pool far larger than what is used costs a CPU nothing until then."""
    before = resident_memory()
    large = PagedKV(CONFIG, 512 << 20, torch.float32, torch.device("cpu"))
    assert large.blocks > 1000
    assert resident_memory() - before < 64 << 20
    assert not large.data[0, -1].any()
