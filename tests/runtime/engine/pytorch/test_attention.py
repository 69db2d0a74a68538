"""Attention over the paged cache, against attention written out."""

from __future__ import annotations

import pytest
import torch

from runtime.engine.pytorch import attention
from runtime.engine.pytorch.attention import PIECE_BLOCKS, agreeing_widths, attend, tiles
from runtime.engine.pytorch.kv_cache import BLOCK_TOKENS, PagedKV
from runtime.model.config import DecoderConfig

HEADS, KV_HEADS, SIZE = 4, 2, 8
CONFIG = DecoderConfig("llama", 1, 32, 16, HEADS, KV_HEADS, SIZE, 50, 512, 1e-5, "silu", True, (1.0,) * 4)


def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """[heads, D] of one query that sees all of [L, kv_heads, D]."""
    out = []
    for head in range(HEADS):
        keys, values = k[:, head // 2].double(), v[:, head // 2].double()
        weights = torch.softmax(keys @ q[head].double() / SIZE**0.5, 0)
        out.append(weights @ values)
    return torch.stack(out).float()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("slice_bytes", [1, 2**25])
def test_each_query_sees_its_own_past(exact: bool, slice_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sequences of different lengths in one group, tiles not full, in one slice of memory or in several."""
    monkeypatch.setattr(attention, "_SLICE_BYTES", slice_bytes)
    generator = torch.Generator().manual_seed(1)
    kv = PagedKV(CONFIG, 2**20, torch.float32, torch.device("cpu"))
    kv.data.copy_(torch.randn(kv.data.shape, generator=generator))
    q = torch.randn(5, HEADS, SIZE, generator=generator)
    positions = torch.tensor([200, 201, 202, 3, 4])
    tables = torch.randint(0, kv.blocks, (2, 2 * PIECE_BLOCKS), generator=generator)
    tile = tiles(kv, torch.tensor([[0, 1, 2, 0], [3, 4, 0, 0]]), tables, positions, HEADS // KV_HEADS, torch.float32)
    out = attend(q, kv, 0, tile, exact=exact).view(2, 4, HEADS, SIZE)
    for token, (row, place) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        blocks = kv.data[0, tables[row]]  # [N, 2 kv_heads, 16, D]
        both = blocks.transpose(1, 2).reshape(-1, 2 * KV_HEADS, SIZE)[: positions[token] + 1]
        reference = expected(q[token], both[:, :KV_HEADS], both[:, KV_HEADS:])
        assert torch.allclose(out[row, place], reference, atol=1e-5)


def test_a_group_reaches_as_far_as_its_tables() -> None:
    """The mask is as wide as the tables and hides what is behind each query."""
    kv = PagedKV(CONFIG, 2**20, torch.float32, torch.device("cpu"))
    tables = torch.zeros(1, PIECE_BLOCKS, dtype=torch.long)
    tile = tiles(kv, torch.tensor([[0, 1]]), tables, torch.tensor([0, 5]), 2, torch.float32)
    assert tile.bias.shape == (1, 1, 4, PIECE_BLOCKS * BLOCK_TOKENS)
    assert torch.isfinite(tile.bias).sum(-1).flatten().tolist() == [1, 1, 6, 6]


def test_widths_that_agree_are_found() -> None:
    """There are some, a wide one and one that a single token does not waste much of among them."""
    widths = agreeing_widths(3, 64)
    assert set(widths) <= {1, 2, 4, 16, 64}
    assert 16 in widths
    assert widths[0] <= 4


def test_a_width_with_other_bits_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that adds in another order for few queries is caught."""
    plain = attention._pieces

    def other(q: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return plain(q, *rest) + (1e-3 if q.shape[2] == 4 * 3 else 0)

    monkeypatch.setattr(attention, "_pieces", other)
    assert 4 not in agreeing_widths(3, 64)
