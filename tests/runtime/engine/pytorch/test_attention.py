"""Attention over the paged cache, against attention written out."""

from __future__ import annotations

import pytest
import torch

from runtime.engine.pytorch import attention
from runtime.engine.pytorch.attention import PIECE_BLOCKS, agreeing_widths, attend, build_tiles
from runtime.engine.pytorch.kv_cache import BLOCK_TOKENS, PagedKV
from tests.support.random_decoder import describe

HEADS, KV_HEADS, SIZE, SCALE = 4, 2, 16, 0.3
SLOPES = torch.tensor([[0.5, 0.25], [0.1, 0.01]])
CPU = torch.device("cpu")


def cache() -> PagedKV:
    """Return a cache with random keys and values."""
    kv = PagedKV(describe(), 2**20, torch.float32, CPU)
    kv.data.copy_(torch.randn(kv.data.shape, generator=torch.Generator().manual_seed(1)))
    return kv


def expected(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, softcap: float, slopes: torch.Tensor | None
) -> torch.Tensor:
    """Return [heads, D] of the query [heads, D] at the last of the positions of [L, kv_heads, D]."""
    oldest = max(0, len(k) - window) if window else 0
    out = []
    for head in range(HEADS):
        keys, values = k[oldest:, head // 2].double(), v[oldest:, head // 2].double()
        scores = keys @ q[head].double() * SCALE
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        if slopes is not None:
            scores += slopes.flatten()[head] * torch.arange(oldest, len(k))
        out.append(torch.softmax(scores, 0) @ values)
    return torch.stack(out).float()


@pytest.mark.parametrize(("window", "slopes"), [(0, None), (3, None), (130, None), (0, SLOPES), (100, SLOPES)])
@pytest.mark.parametrize(("exact", "softcap"), [(True, 0.0), (True, 2.0), (False, 0.0)])
@pytest.mark.parametrize("slice_bytes", [1, 2**25])
def test_each_query_attends_to_its_own_past(
    exact: bool,
    softcap: float,
    window: int,
    slopes: torch.Tensor | None,
    slice_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two sequences of different lengths in one group, tiles not full, in one slice of memory or in several."""
    monkeypatch.setattr(attention, "_SLICE_BYTES", slice_bytes)
    generator = torch.Generator().manual_seed(1)
    kv = cache()
    q = torch.randn(5, HEADS, SIZE, generator=generator)
    positions = torch.tensor([400, 401, 402, 3, 4])
    tokens = torch.tensor([[0, 1, 2, 0], [3, 4, 3, 3]])
    tables = torch.randint(0, kv.blocks, (2, 4 * PIECE_BLOCKS), generator=generator)
    tile = build_tiles(kv, tokens, tables, positions, 2, torch.float32, window=window, slopes=slopes)
    out = attend(q, kv, 0, tile, scale=SCALE, softcap=softcap, exact=exact).view(2, 4, HEADS, SIZE)
    for token, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        blocks = kv.data[0, tables[row]]  # [N, 2 kv_heads, 16, D]
        both = blocks.transpose(1, 2).reshape(-1, 2 * KV_HEADS, SIZE)[: positions[token] + 1]
        reference = expected(q[token], both[:, :KV_HEADS], both[:, KV_HEADS:], window, softcap, slopes)
        assert torch.allclose(out[row, column], reference, atol=1e-5)


def test_a_group_reads_what_its_tables_contain() -> None:
    """The mask is as wide as the tables and hides the positions after each query."""
    kv = cache()
    tables = torch.zeros(1, PIECE_BLOCKS, dtype=torch.long)
    tile = build_tiles(kv, torch.tensor([[0, 1]]), tables, torch.tensor([0, 5]), 2, torch.float32)
    assert tile.bias.shape == (1, 1, 4, PIECE_BLOCKS * BLOCK_TOKENS)
    assert torch.isfinite(tile.bias).sum(-1).flatten().tolist() == [1, 1, 6, 6]


@pytest.mark.parametrize(("window", "pieces"), [(1, 1), (2, 2), (129, 2), (130, 3), (770, 8), (2000, 8)])
def test_a_window_reads_its_own_blocks_only(window: int, pieces: int) -> None:
    """The pieces that a window can touch are read; each query attends to exactly the window, or to its whole past."""
    kv = cache()
    positions = torch.tensor([1000, 128, 127, 5])
    tables = torch.arange(8 * PIECE_BLOCKS).repeat(4, 1)
    tile = build_tiles(kv, torch.arange(4)[:, None], tables, positions, 2, torch.float32, window=window)
    assert tile.tables.shape == (4, pieces * PIECE_BLOCKS)
    attended = torch.isfinite(tile.bias[:, 0, 0]).view(4, -1, BLOCK_TOKENS)
    for row, position in enumerate(positions.tolist()):
        blocks, offsets = attended[row].nonzero(as_tuple=True)
        read = tile.tables[row, blocks] * BLOCK_TOKENS + offsets  # block b contains positions from 16 b on
        assert read.tolist() == list(range(max(0, position - window + 1), position + 1))


@pytest.mark.parametrize("window", [0, 40, 300])
def test_bits_do_not_depend_on_the_other_tiles(window: int) -> None:
    """A query has the same bits alone, in a wider tile, and beside a sequence that is much longer."""
    kv = cache()
    q = torch.randn(6, HEADS, SIZE)
    q[5] = q[0]
    positions = torch.tensor([290, 291, 292, 293, 1000, 290])
    tables = torch.randint(0, kv.blocks, (2, 8 * PIECE_BLOCKS))

    def outcome(tokens: list[list[int]], rows: list[int], pieces: int) -> torch.Tensor:
        cut = tables[rows, : pieces * PIECE_BLOCKS]
        tile = build_tiles(kv, torch.tensor(tokens), cut, positions, 2, torch.float32, window=window, slopes=SLOPES)
        return attend(q, kv, 0, tile, scale=SCALE, exact=True)

    widths = agreeing_widths(2, SIZE, CPU)
    narrow = widths[0]
    alone = outcome([[0] * narrow], [0], 3)[0]
    assert torch.equal(outcome([[4] * narrow, [5] * narrow], [1, 0], 8)[narrow], alone)
    if 4 in widths:
        assert torch.equal(outcome([[0, 1, 2, 3]], [0], 3)[0], alone)
        assert torch.equal(outcome([[4] * 4, [0, 1, 2, 3]], [1, 0], 8)[4], alone)


def test_widths_that_agree_are_found() -> None:
    """There are some, a wide one and one that a single token does not waste much of among them."""
    widths = agreeing_widths(3, 64, CPU)
    assert set(widths) <= {1, 2, 4, 16, 64}
    assert 16 in widths
    assert widths[0] <= 4


def test_a_width_with_other_bits_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that adds in another order for few queries is caught."""
    plain = attention._in_pieces

    def other(q: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return plain(q, *rest) + (1e-3 if q.shape[2] == 4 * 3 else 0)

    monkeypatch.setattr(attention, "_in_pieces", other)
    assert 4 not in agreeing_widths(3, 64, CPU)
