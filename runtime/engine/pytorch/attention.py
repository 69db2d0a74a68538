"""Attention of packed tokens over a paged cache.

The tokens of a step are cut into tiles of consecutive tokens of one sequence. Tiles of the same width run together,
each with its own copy of the sequence's keys and values, gathered as far as the longest of them reaches. The query
heads that share a key head stand beside the tokens of the tile, as more queries.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from runtime.engine.pytorch.kv_cache import BLOCK_TOKENS, PagedKV

PIECE = 128  # keys that one product takes
PIECE_BLOCKS = PIECE // BLOCK_TOKENS
# The first takes any mask, and each of its blocks of queries goes through the keys in order by itself: which other rows
# there are, and how many masked keys follow, changes no bit. The other is for shapes that it does not take.
_GPU_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_WIDTHS = (1, 2, 4, 16, 64)  # of tiles that are tried where bits matter
_SLICE_BYTES = 32 * 2**20  # of gathered keys and values at a time


@dataclass(slots=True)
class Tiles:
    """Tiles of one width.

    Args:
        tokens: [B, W] index of each query among the packed tokens; any where a tile is not full.
        tables: [B, N] blocks of each tile's sequence in order of position, N a multiple of ``PIECE_BLOCKS``; any block
            behind the sequence's own.
        pages: of the tables, see ``PagedKV.pages``.
        bias: [B, 1, W * G, N * BLOCK_TOKENS] 0 where a query may look, else -inf.
    """

    tokens: Tensor
    tables: Tensor
    pages: Tensor
    bias: Tensor


def tiles(kv: PagedKV, tokens: Tensor, tables: Tensor, positions: Tensor, group: int, dtype: torch.dtype) -> Tiles:
    """Prepare tiles once for all layers.

    Args:
        kv: the cache.
        tokens: see ``Tiles``.
        tables: see ``Tiles``.
        positions: [M] of the packed tokens.
        group: query heads per key head.
        dtype: of the scores: the queries' own, or float32 where ``attend`` is exact.
    """
    keys = torch.arange(tables.shape[1] * BLOCK_TOKENS, device=tables.device)
    hidden = keys > positions[tokens].repeat_interleave(group, dim=1)[:, None, :, None]  # [B, 1, W * G, L]
    bias = torch.zeros(hidden.shape, dtype=dtype, device=tables.device).masked_fill_(hidden, float("-inf"))
    return Tiles(tokens, tables, kv.pages(tables), bias)


def attend(queries: Tensor, kv: PagedKV, layer: int, tile: Tiles, *, exact: bool) -> Tensor:
    """Attention of one group of tiles.

    Args:
        queries: [M, heads, D] of all packed tokens.
        kv: the cache, with these tokens' own keys and values.
        layer: whose.
        tile: the tiles.
        exact: whether to see to it that no bit of a query's answer depends on the other tiles or on how far they
            reach; what runs on a GPU is so by itself.

    Returns:
        [B * W, heads * D].
    """
    (rows, width), (_, heads, size) = tile.tokens.shape, queries.shape
    kv_heads = kv.data.shape[2] // 2
    q = queries[tile.tokens].view(rows, width, kv_heads, heads // kv_heads, size).transpose(1, 2)
    q = q.reshape(rows, kv_heads, -1, size)  # [B, kv_heads, W * G, D]
    if exact:
        out = _in_pieces(q, kv, layer, tile)
    else:
        k, v = kv.read(layer, tile.pages, rows)
        with sdpa_kernel(_GPU_KERNELS) if q.device.type == "cuda" else nullcontext():
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=tile.bias)
    return out.view(rows, kv_heads, width, -1, size).transpose(1, 2).reshape(rows * width, heads * size)


def _in_pieces(q: Tensor, kv: PagedKV, layer: int, tile: Tiles) -> Tensor:
    """Attention out of products of few fixed shapes: W * G queries with ``PIECE`` keys, in float32.

    A library may sum in another order when a shape changes, so all that are summed over stay the same, for widths that
    ``agreeing_widths`` names. What a piece of masked keys adds is exactly 0.
    """
    rows, kv_heads, _, size = q.shape
    step = max(1, _SLICE_BYTES // (8 * kv_heads * size * tile.tables.shape[1] * BLOCK_TOKENS))
    outs = []
    for start in range(0, rows, step):
        tables, bias = tile.tables[start : start + step], tile.bias[start : start + step]
        pages = tile.pages if step >= rows else kv.pages(tables)
        k, v = (part.float() for part in kv.read(layer, pages, len(tables)))
        outs.append(_pieces(q[start : start + step].float(), k, v, bias))
    return torch.cat(outs).to(q.dtype)


def _pieces(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    rows, kv_heads, queries, size = q.shape
    pieces = k.shape[2] // PIECE
    split = (rows, kv_heads, pieces)
    each = (
        (q * size**-0.5)[:, :, None].expand(*split, queries, size).reshape(-1, queries, size)
    )  # [B * kv_heads * P, Q, D]
    scores = torch.bmm(each, k.view(-1, PIECE, size).transpose(1, 2)).view(*split, queries, PIECE)
    scores += bias.view(rows, 1, queries, pieces, PIECE).transpose(2, 3)
    weights = scores.sub_(scores.amax((2, 4), keepdim=True)).exp_()
    out = torch.bmm(weights.view(-1, queries, PIECE), v.view(-1, PIECE, size)).view(*split, queries, size)
    return out.sum(2) / weights.sum(4).sum(2)[..., None]


def agreeing_widths(group: int, size: int) -> tuple[int, ...]:
    """The widths of tiles for which this machine's products give the same bits, found by trying.

    Args:
        group: query heads per key head.
        size: of a head.
    """
    rows, heads, tokens, length = 2, 2, _WIDTHS[-1], 2 * PIECE
    random = torch.Generator().manual_seed(0)
    q = torch.randn(rows, heads, tokens * group, size, generator=random)
    k, v = torch.randn(2, rows, heads, length, size, generator=random)
    hidden = torch.arange(length) > 2 * torch.arange(tokens).repeat_interleave(group)[:, None]
    bias = torch.zeros(rows, 1, *hidden.shape).masked_fill_(hidden, float("-inf"))

    def outcome(width: int, rows: int, keys: int) -> Tensor:
        """Of the first row, [heads, tokens * G, D], beside so many rows and as far as so many keys."""
        count = tokens // width
        parts = q[:rows].view(rows, heads, count, -1, size).transpose(1, 2).flatten(0, 1)
        biases = bias[:rows, :, :, :keys].reshape(rows * count, 1, -1, keys)
        k_each, v_each = (part[:rows, :, :keys].repeat_interleave(count, dim=0) for part in (k, v))
        return _pieces(parts, k_each, v_each, biases)[:count].transpose(0, 1).reshape(heads, -1, size)

    expected = outcome(_WIDTHS[-2], 1, PIECE)
    around = [(rows, PIECE), (1, length), (rows, length), (1, PIECE)]
    return tuple(width for width in _WIDTHS if all(torch.equal(outcome(width, *other), expected) for other in around))
