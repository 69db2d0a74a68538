"""Quantizes float matrices to 4 bits, for ``DTYPE=int4``.

A row's groups of 32 weights have a scale and a minimum each, searched to least weighted error: a few scales around that
of the group's range are tried, the best scale and minimum for the rounded codes are computed by least squares, and
the pair with the least error is kept, as in llama.cpp's ``make_qkx2_quants`` (ggml-quants.c). The errors of
large weights count more. The result has one of the formats of ``runtime.model.block_formats``: ``q4_k``, whose scales
are 8-bit numbers here, or ``q4_1`` where a matrix's width is no multiple of 256.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from runtime.model.block_formats import FORMATS, Blocks, pack_blocks
from runtime.model.packing import PANEL_ROWS

Array = NDArray[np.float32]

FourBitKind = Literal["q4_1", "q4_k"]
FOUR_BIT_KINDS: tuple[FourBitKind, ...] = ("q4_1", "q4_k")
GROUP = 32
_TOP = 15  # the largest code
_STRETCHES = (-0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9)  # steps by which a group's range is divided more finely or coarsely
_OUTER = 256


def four_bit_kind(columns: int) -> FourBitKind | None:
    """Return the format for a matrix of a width; None if none suits it.

    Args:
        columns: the width.
    """
    return next((kind for kind in ("q4_k", "q4_1") if columns % FORMATS[kind].columns == 0), None)


def pack_four_bits(values: Array, kind: FourBitKind) -> NDArray[np.uint8]:
    """Quantize and pack some rows of a matrix.

    Args:
        values: the rows [N, K]; missing rows of the last panel are zeros.
        kind: the format; K is a multiple of its ``columns``.

    Returns:
        The panels' bytes, flat.
    """
    missing = -len(values) % PANEL_ROWS
    rows = np.pad(values, ((0, missing), (0, 0))) if missing else values
    return pack_blocks(_quantized(rows, kind), kind)


def _quantized(values: Array, kind: FourBitKind) -> Blocks:
    """Quantize a matrix [N, K]. Arguments as for ``pack_four_bits``."""
    n, k = values.shape
    groups = np.ascontiguousarray(values, np.float32).reshape(-1, GROUP)
    scales, minima = _search(groups)
    if kind == "q4_1":
        scales, minima = scales.astype(np.float16), minima.astype(np.float16)
        codes = _codes(groups, scales.astype(np.float32), minima.astype(np.float32))
        return Blocks(codes.astype(np.uint8).reshape(n, k), scales.reshape(n, -1), minima.reshape(n, -1))
    factors, numbers = _nested(scales, 127, np.int8)
    minus_factors, minus = _nested(-minima, 255, np.uint8)
    found = [numbers * factors.astype(np.float32), minus * -minus_factors.astype(np.float32)]
    codes = _codes(groups, *(part.reshape(-1, 1) for part in found))
    by_row = [part.reshape(n, -1) for part in (numbers, minus, factors, minus_factors)]
    return Blocks(codes.astype(np.uint8).reshape(n, k), *by_row)


def _search(groups: Array) -> tuple[Array, Array]:
    """Return the scale and the minimum, at most 0, of each group [n, 32], as [n, 1]."""
    low = np.minimum(groups.min(axis=1, keepdims=True), 0)
    high = np.maximum(groups.max(axis=1, keepdims=True), low)
    width = np.maximum(high - low, np.finfo(np.float32).tiny)
    weights = np.abs(groups)
    weights += np.sqrt(np.square(groups).mean(axis=1, keepdims=True))
    total = weights.sum(axis=1, keepdims=True)
    sum_x = (weights * groups).sum(axis=1, keepdims=True)
    best: list[Any] = []
    for stretch in _STRETCHES:
        codes = _codes(groups, width / np.float32(_TOP + stretch), low)
        weighted = weights * codes
        sum_c = weighted.sum(axis=1, keepdims=True)
        sum_cc = (weighted * codes).sum(axis=1, keepdims=True)
        sum_cx = (weighted * groups).sum(axis=1, keepdims=True)
        determinant = total * sum_cc - sum_c * sum_c
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = (total * sum_cx - sum_x * sum_c) / determinant
            minimum = (sum_cc * sum_x - sum_c * sum_cx) / determinant
            alone = sum_cx / sum_cc  # the best scale without a minimum
        positive = minimum > 0
        minimum = np.where(positive, 0, minimum)
        scale = np.where(positive, alone, scale)
        bad = ~(np.isfinite(scale) & np.isfinite(minimum) & (scale > 0))
        scale, minimum = np.where(bad, width / _TOP, scale), np.where(bad, low, minimum)
        error = (weights * np.square(codes * scale + minimum - groups)).sum(axis=1, keepdims=True)
        if not best:
            best = [error, scale, minimum]
            continue
        better = error < best[0]
        for kept, found in zip(best, (error, scale, minimum), strict=True):
            np.copyto(kept, found, where=better)
    return best[1].astype(np.float32), best[2].astype(np.float32)


def _codes(groups: Array, scales: Array, minima: Array) -> NDArray[Any]:
    """Return the codes of groups' values [n, 32], for scales and minima [n, 1]."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        steps = np.nan_to_num((groups - minima) / scales, nan=0.0, posinf=0.0, neginf=0.0)
    codes: NDArray[Any] = np.clip(np.rint(steps), 0, _TOP)
    return codes


def _nested(numbers: Array, top: int, dtype: Any) -> tuple[NDArray[np.float16], NDArray[Any]]:
    """Return the factor of each 256 columns [n, 1], and the groups' numbers in steps of it [n, 8]."""
    wide = numbers.reshape(-1, _OUTER // GROUP)
    factors = (wide.max(axis=1, keepdims=True) / np.float32(top)).astype(np.float16)
    exact = factors.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(exact > 0, wide / exact, 0)
    return factors, np.clip(np.rint(steps), 0, top).astype(dtype)
