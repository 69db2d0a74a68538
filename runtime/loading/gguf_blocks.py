"""Takes the quantized blocks of GGUF files apart into the numbers that ``runtime.model.block_formats`` packs.

No number changes, except that the signed codes of Q8_0 are stored with 128 added. The layouts are those of ggml, see
``runtime.loading.gguf_quants``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from runtime.loading.gguf_quants import QUANTIZATIONS, bit_planes, bits, nibbles, pairs_of_bits, six_bit_pairs
from runtime.model.block_formats import BLOCK_KINDS, BlockKind, Blocks, pack_blocks
from runtime.model.packing import PANEL_ROWS, MatrixKind

Bytes = NDArray[np.uint8]

_KINDS: dict[str, MatrixKind] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_KINDS |= {kind.upper(): kind for kind in BLOCK_KINDS}


def matrix_kind(number: int) -> MatrixKind | None:
    """Return the format in which a matrix of a GGUF type is served unchanged; None if there is none.

    Args:
        number: ggml's number of the type, one of ``QUANTIZATIONS``.
    """
    return _KINDS.get(QUANTIZATIONS[number].name)


def pack_rows(rows: Bytes, kind: BlockKind) -> Bytes:
    """Pack rows of a GGUF tensor into panels; missing rows of the last panel are zeros.

    Args:
        rows: the rows' blocks [N, bytes of a row].
        kind: their type.

    Returns:
        The panels' bytes, flat.
    """
    missing = -len(rows) % PANEL_ROWS
    if missing:
        rows = np.concatenate([rows, np.zeros((missing, rows.shape[1]), np.uint8)])
    split = _SPLIT[kind]
    size = next(rule.size for rule in QUANTIZATIONS.values() if rule.name == kind.upper())
    found = split(np.ascontiguousarray(rows).reshape(-1, size))
    count = len(rows)

    def by_row(numbers: NDArray[np.generic] | None) -> NDArray[np.generic] | None:
        return None if numbers is None else numbers.reshape(count, -1)

    whole = Blocks(
        found.codes.reshape(count, -1),
        found.scales.reshape(count, -1),
        by_row(found.minima),
        by_row(found.factors),
        by_row(found.minimum_factors),
    )
    return pack_blocks(whole, kind)


def _half(blocks: Bytes, start: int) -> NDArray[np.float16]:
    """Return the float16 number that each block has at a position [n, 1]."""
    return blocks[:, start : start + 2].copy().view("<f2")


def _q4_0(blocks: Bytes) -> Blocks:
    return Blocks(nibbles(blocks[:, 2:], 16), _half(blocks, 0))


def _q4_1(blocks: Bytes) -> Blocks:
    return Blocks(nibbles(blocks[:, 4:], 16), _half(blocks, 0), _half(blocks, 2))


def _q5_0(blocks: Bytes) -> Blocks:
    return Blocks(nibbles(blocks[:, 6:], 16) | bits(blocks[:, 2:6]) << np.uint8(4), _half(blocks, 0))


def _q5_1(blocks: Bytes) -> Blocks:
    return Blocks(nibbles(blocks[:, 8:], 16) | bits(blocks[:, 4:8]) << np.uint8(4), _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Bytes) -> Blocks:
    return Blocks(blocks[:, 2:] ^ np.uint8(128), _half(blocks, 0))


def _q2_k(blocks: Bytes) -> Blocks:
    both = blocks[:, :16]
    codes = pairs_of_bits(blocks[:, 16:80], 32)
    return Blocks(codes, (both & 15).view(np.int8), both >> 4, _half(blocks, 80), _half(blocks, 82))


def _q3_k(blocks: Bytes) -> Blocks:
    codes = pairs_of_bits(blocks[:, 32:96], 32) | bit_planes(blocks[:, :32]) << np.uint8(2)
    scales = nibbles(blocks[:, 96:104], 8) | pairs_of_bits(blocks[:, 104:108], 4) << np.uint8(4)
    return Blocks(codes, scales.view(np.int8) - np.int8(32), None, _half(blocks, 108))


def _q4_k(blocks: Bytes) -> Blocks:
    scales, minima = six_bit_pairs(blocks[:, 4:16])
    codes = nibbles(blocks[:, 16:], 32)
    return Blocks(codes, scales.view(np.int8), minima, _half(blocks, 0), _half(blocks, 2))


def _q5_k(blocks: Bytes) -> Blocks:
    scales, minima = six_bit_pairs(blocks[:, 4:16])
    codes = nibbles(blocks[:, 48:], 32) | bit_planes(blocks[:, 16:48]) << np.uint8(4)
    return Blocks(codes, scales.view(np.int8), minima, _half(blocks, 0), _half(blocks, 2))


def _q6_k(blocks: Bytes) -> Blocks:
    codes = nibbles(blocks[:, :128], 64) | pairs_of_bits(blocks[:, 128:192], 32) << np.uint8(4)
    return Blocks(codes, blocks[:, 192:208].view(np.int8), None, _half(blocks, 208))


def _iq4_nl(blocks: Bytes) -> Blocks:
    return Blocks(nibbles(blocks[:, 2:], 16), _half(blocks, 0))


def _iq4_xs(blocks: Bytes) -> Blocks:
    scales = nibbles(blocks[:, 4:8], 1) | pairs_of_bits(blocks[:, 2:4], 1) << np.uint8(4)
    return Blocks(nibbles(blocks[:, 8:], 16), scales.view(np.int8) - np.int8(32), None, _half(blocks, 0))


_SPLIT: Mapping[BlockKind, Callable[[Bytes], Blocks]] = {
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q8_0": _q8_0,
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "iq4_nl": _iq4_nl,
    "iq4_xs": _iq4_xs,
}
