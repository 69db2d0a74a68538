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
_TRIAL_ROWS = {"cpu": 2}  # tiles of the largest trial product
_SLICE_BYTES = 32 * 2**20  # maximum bytes of keys and values gathered at a time


@dataclass(slots=True)
class Tiles:
    """A batch of tiles of one width. B: tiles, W: tokens per tile, N: blocks per table, G: query heads per key head.

    Args:
        tokens: [B, W] index of each query among the packed tokens; a tile is padded with any of its tokens.
        tables: [B, N] blocks whose keys the tile's queries attend to, N a multiple of ``PIECE_BLOCKS``; padded with any
            block.
        page_indices: index into the cache that ``PagedKV.page_indices`` returned for the tables.
        bias: [B, 1 or kv_heads, W * G, N * BLOCK_TOKENS] what is added to the attention scores: -inf where a query may
            not attend, else the position bias (ALiBi), or 0.
    """

    tokens: Tensor
    tables: Tensor
    page_indices: Tensor
    bias: Tensor


def build_tiles(
    kv: PagedKV,
    tokens: Tensor,
    tables: Tensor,
    positions: Tensor,
    group: int,
    dtype: torch.dtype,
    *,
    window: int = 0,
    slopes: Tensor | None = None,
) -> Tiles:
    """Build the tiles and their bias, once for all layers with the same window.

    Args:
        kv: the KV cache.
        tokens: [B, W] indices of the queries, see ``Tiles``; a tile's first token has its lowest position.
        tables: [B, N] block tables of the tiles' sequences from position 0 on, N a multiple of ``PIECE_BLOCKS``.
        positions: [M] positions of the packed tokens in their sequences.
        group: query heads per key head.
        dtype: dtype of the attention scores: that of the queries, or float32 for exact attention.
        window: number of positions that a token attends to, its own included; 0 for all. Where a window's pieces are
            fewer than the tables', only they are read.
        slopes: [kv_heads, G] float32 ALiBi slopes (arXiv:2108.12409), or None.
    """
    width, length = tokens.shape[1], tables.shape[1]
    queries = positions[tokens]  # [B, W]
    start = torch.zeros_like(queries[:, :1])  # [B, 1] first block that is read
    # Pieces begin at the same positions for every tile, and a window may begin at the last key of one.
    pieces = (window + width + 2 * PIECE - 3) // PIECE
    if window and pieces * PIECE_BLOCKS < length:
        start = (queries[:, :1] - window + 1).clamp(min=0) // PIECE * PIECE_BLOCKS
        blocks = start + torch.arange(pieces * PIECE_BLOCKS, device=tables.device)
        tables = tables.gather(1, blocks.clamp(max=length - 1))  # positions beyond the tables' end are masked
    keys = start * BLOCK_TOKENS + torch.arange(tables.shape[1] * BLOCK_TOKENS, device=tables.device)  # [B or 1, L]
    distance = (queries[:, :, None] - keys[:, None])[:, None, :, None]  # [B, 1, W, 1, L]
    hidden = distance < 0
    if window:
        hidden |= distance >= window
    if slopes is None:
        bias = torch.zeros(hidden.shape, dtype=dtype, device=tables.device)
    else:  # relative to the query: a constant of each query does not change the softmax, and small values are exact
        bias = -distance * slopes[:, None, :, None]  # [B, kv_heads, W, G, L]
    bias = bias.masked_fill_(hidden, float("-inf")).to(dtype).expand(-1, -1, -1, group, -1).flatten(2, 3)
    return Tiles(tokens, tables, kv.page_indices(tables), bias)


def attend(
    queries: Tensor, kv: PagedKV, layer: int, tile: Tiles, *, scale: float, softcap: float = 0.0, exact: bool
) -> Tensor:
    """Compute attention for tiles of one width.

    Args:
        queries: [M, heads, D] queries of all packed tokens.
        kv: the KV cache, which already contains these tokens' own keys and values.
        layer: the layer's index.
        tile: the tiles.
        scale: factor of the scores.
        softcap: c of ``c * tanh(score / c)``, applied to the scaled scores; 0 for none. Needs ``exact``.
        exact: whether to use fixed product shapes, so that no bit of a query's result depends on the other tiles or
            their length. Not needed for that on a GPU, whose kernels have that property.

    Returns:
        [B * W, heads * D] attention outputs, padding included.
    """
    (rows, width), (_, heads, size) = tile.tokens.shape, queries.shape
    kv_heads = kv.data.shape[2] // 2
    q = queries[tile.tokens].view(rows, width, kv_heads, heads // kv_heads, size).transpose(1, 2)
    q = q.reshape(rows, kv_heads, -1, size)  # [B, kv_heads, W * G, D]
    if exact:
        out = _in_slices(q, kv, layer, tile, scale, softcap)
    else:
        k, v = kv.read(layer, tile.page_indices, rows)
        with sdpa_kernel(_GPU_KERNELS) if q.device.type == "cuda" else nullcontext():
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=tile.bias, scale=scale)
    return out.view(rows, kv_heads, width, -1, size).transpose(1, 2).reshape(rows * width, heads * size)


def _in_slices(q: Tensor, kv: PagedKV, layer: int, tile: Tiles, scale: float, softcap: float) -> Tensor:
    """Compute attention in float32 for slices of the tiles, which bounds the memory of gathered keys and values."""
    rows, kv_heads, _, size = q.shape
    step = max(1, _SLICE_BYTES // (8 * kv_heads * size * tile.tables.shape[1] * BLOCK_TOKENS))
    outs = []
    for start in range(0, rows, step):
        tables, bias = tile.tables[start : start + step], tile.bias[start : start + step]
        page_indices = tile.page_indices if step >= rows else kv.page_indices(tables)
        k, v = (part.float() for part in kv.read(layer, page_indices, len(tables)))
        outs.append(_in_pieces(q[start : start + step].float() * scale, k, v, bias, softcap))
    return torch.cat(outs).to(q.dtype)


def _in_pieces(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, softcap: float = 0.0) -> Tensor:
    """Compute attention with products of few fixed shapes: W * G queries with ``PIECE`` keys.

    A library may sum in another order when a shape changes, so the summed dimensions are fixed, and W is one of
    ``agreeing_widths``. Other sums are written as additions of tensors, whose order is fixed. A piece of masked keys
    adds exactly 0, so pieces before and after those that a query attends to change no bit.
    """
    rows, kv_heads, queries, size = q.shape
    pieces = k.shape[2] // PIECE
    if rows * kv_heads * pieces == 1:  # a single product, which libraries split among threads in another way
        q, k, v, bias = (x.expand(2, *x.shape[1:]).contiguous() for x in (q, k, v, bias))
        return _in_pieces(q, k, v, bias, softcap)[:1]
    split = (rows, kv_heads, pieces)
    each = q[:, :, None].expand(*split, queries, size).reshape(-1, queries, size)  # [B * kv_heads * P, Q, D]
    scores = torch.bmm(each, k.view(-1, PIECE, size).transpose(1, 2)).view(*split, queries, PIECE)
    if softcap:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    scores += bias.view(rows, -1, queries, pieces, PIECE).transpose(2, 3)
    weights = scores.sub_(scores.amax((2, 4), keepdim=True)).exp_()
    out = torch.bmm(weights.view(-1, queries, PIECE), v.view(-1, PIECE, size)).view(*split, queries, size)
    while weights.shape[4] > 1:
        half = weights.shape[4] // 2
        weights = weights[..., :half] + weights[..., half:]
    return _sum_in_order(out) / _sum_in_order(weights)


def _sum_in_order(x: Tensor) -> Tensor:
    """Sum over the third dimension one after another, since the order of ``sum`` depends on the shape."""
    total = x[:, :, 0]
    for piece in range(1, x.shape[2]):
        total = total + x[:, :, piece]
    return total


def agreeing_widths(group: int, size: int, device: torch.device) -> tuple[int, ...]:
    """Return the tile widths for which this machine's products give identical bits, determined by a trial.

    Args:
        group: query heads per key head.
        size: head dimension.
        device: the device that computes.
    """
    rows, heads, tokens, length = _TRIAL_ROWS.get(device.type, 32), 2, _WIDTHS[-1], 2 * PIECE
    random = torch.Generator().manual_seed(0)
    q = torch.randn(rows, heads, tokens * group, size, generator=random).to(device)
    k, v = torch.randn(2, rows, heads, length, size, generator=random).to(device)
    hidden = torch.arange(length) > 2 * torch.arange(tokens).repeat_interleave(group)[:, None]
    bias = torch.zeros(rows, 1, *hidden.shape).masked_fill_(hidden, float("-inf")).to(device)

    def outcome(width: int, rows: int, keys: int) -> Tensor:
        """Return the first row's output [heads, tokens * G, D], computed with ``rows`` rows and ``keys`` keys."""
        count = tokens // width
        parts = q[:rows].view(rows, heads, count, -1, size).transpose(1, 2).flatten(0, 1)
        biases = bias[:rows, :, :, :keys].reshape(rows * count, 1, -1, keys)
        k_each, v_each = (part[:rows, :, :keys].repeat_interleave(count, dim=0) for part in (k, v))
        return _in_pieces(parts * size**-0.5, k_each, v_each, biases)[:count].transpose(0, 1).reshape(heads, -1, size)

    expected = outcome(_WIDTHS[-2], 1, PIECE)
    around = [(rows, PIECE), (1, length), (rows, length), (1, PIECE)]
    return tuple(width for width in _WIDTHS if all(torch.equal(outcome(width, *other), expected) for other in around))
