"""Paged attention for the packed tokens of a step.

The tokens of a step are split into tiles of consecutive tokens of one sequence. Tiles of the same width run as one
batch; each has its own copy of its sequence's keys and values, gathered to the length of the longest tile. Query heads
that share a key head (grouped-query attention) are folded into the query dimension of the tile.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from runtime.engine.pytorch.kv_cache import BLOCK_TOKENS, PagedKV

PIECE = 128  # keys per product
PIECE_BLOCKS = PIECE // BLOCK_TOKENS
# The first kernel supports any mask, and each of its query blocks iterates over the keys in order independently: other
# rows and the number of trailing masked keys change no bit. The second is the fallback for unsupported shapes.
_GPU_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_WIDTHS = (1, 2, 4, 16, 64)  # candidate tile widths for exact attention
_SLICE_BYTES = 32 * 2**20  # maximum bytes of keys and values gathered at a time


@dataclass(slots=True)
class Tiles:
    """A batch of tiles of one width. B: tiles, W: tokens per tile, N: blocks per table, G: query heads per key head.

    Args:
        tokens: [B, W] index of each query among the packed tokens; arbitrary where a tile is padded.
        tables: [B, N] block table of each tile's sequence, N a multiple of ``PIECE_BLOCKS``; padded with any block.
        pages: index into the cache that ``PagedKV.pages`` returned for the tables.
        bias: [B, 1, W * G, N * BLOCK_TOKENS] attention mask: 0 where a query may attend, else -inf.
    """

    tokens: Tensor
    tables: Tensor
    pages: Tensor
    bias: Tensor


def tiles(kv: PagedKV, tokens: Tensor, tables: Tensor, positions: Tensor, group: int, dtype: torch.dtype) -> Tiles:
    """Build the tiles and their mask once for all layers.

    Args:
        kv: the KV cache.
        tokens: [B, W] indices of the queries, see ``Tiles``.
        tables: [B, N] block tables, see ``Tiles``.
        positions: [M] positions of the packed tokens in their sequences.
        group: query heads per key head.
        dtype: dtype of the attention scores: that of the queries, or float32 for exact attention.
    """
    keys = torch.arange(tables.shape[1] * BLOCK_TOKENS, device=tables.device)
    hidden = keys > positions[tokens].repeat_interleave(group, dim=1)[:, None, :, None]  # [B, 1, W * G, L]
    bias = torch.zeros(hidden.shape, dtype=dtype, device=tables.device).masked_fill_(hidden, float("-inf"))
    return Tiles(tokens, tables, kv.pages(tables), bias)


def attend(queries: Tensor, kv: PagedKV, layer: int, tile: Tiles, *, exact: bool) -> Tensor:
    """Compute attention for tiles of one width.

    Args:
        queries: [M, heads, D] queries of all packed tokens.
        kv: the KV cache, which already contains these tokens' own keys and values.
        layer: the layer's index.
        tile: the tiles.
        exact: whether to use fixed product shapes, so that no bit of a query's result depends on the other tiles or
            their length. Not needed on a GPU, whose kernels have that property.

    Returns:
        [B * W, heads * D] attention outputs, padding included.
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
    """Compute attention in float32 with products of few fixed shapes: W * G queries with ``PIECE`` keys.

    A library may sum in another order when a shape changes, so the summed dimensions are fixed, and W is one of
    ``agreeing_widths``. A piece of masked keys adds exactly 0.
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
    """Return the tile widths for which this machine's products give identical bits, determined by a trial.

    Args:
        group: query heads per key head.
        size: head dimension.
    """
    rows, heads, tokens, length = 2, 2, _WIDTHS[-1], 2 * PIECE
    random = torch.Generator().manual_seed(0)
    q = torch.randn(rows, heads, tokens * group, size, generator=random)
    k, v = torch.randn(2, rows, heads, length, size, generator=random)
    hidden = torch.arange(length) > 2 * torch.arange(tokens).repeat_interleave(group)[:, None]
    bias = torch.zeros(rows, 1, *hidden.shape).masked_fill_(hidden, float("-inf"))

    def outcome(width: int, rows: int, keys: int) -> Tensor:
        """Return the first row's output [heads, tokens * G, D], computed with ``rows`` rows and ``keys`` keys."""
        count = tokens // width
        parts = q[:rows].view(rows, heads, count, -1, size).transpose(1, 2).flatten(0, 1)
        biases = bias[:rows, :, :, :keys].reshape(rows * count, 1, -1, keys)
        k_each, v_each = (part[:rows, :, :keys].repeat_interleave(count, dim=0) for part in (k, v))
        return _pieces(parts, k_each, v_each, biases)[:count].transpose(0, 1).reshape(heads, -1, size)

    expected = outcome(_WIDTHS[-2], 1, PIECE)
    around = [(rows, PIECE), (1, length), (rows, length), (1, PIECE)]
    return tuple(width for width in _WIDTHS if all(torch.equal(outcome(width, *other), expected) for other in around))
