"""Converts the quantized blocks of GGUF files to float32, with the results of ``gguf.quants.dequantize``, only faster.

The layouts are those of ggml (``ggml-common.h`` and ``dequantize_row_*`` in ``ggml-quants.c``). A block holds 32 or 256
values of a row: codes of a few bits, and scales, which belong to sub-blocks of 16 or 32 values in the larger ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.model.block_formats import BLOCK_KINDS, FORMATS, IQ4_VALUES, BlockFormat, BlockKind, Blocks

Bytes = NDArray[np.uint8]
Array = NDArray[np.float32]

BLOCK_KINDS_BY_NAME: dict[str, BlockKind] = {kind.upper(): kind for kind in BLOCK_KINDS}
"""The formats of ``runtime.model.block_formats`` by ggml's names."""

_CHUNK_VALUES = 1 << 17  # converted at a time, so that intermediate results stay in the processor's cache


@dataclass(frozen=True, slots=True)
class Quantization:
    """A number type of GGUF tensors.

    Args:
        name: ggml's name.
        values: number of values in a block.
        size: size of a block in bytes.
        convert: writes blocks [n, size] to float32 [n, values], of types without scales.
        split: takes blocks [n, size] apart into new arrays [n, values] and [n, sub-blocks], of types that
            ``runtime.model.block_formats`` has. Without both the ``gguf`` package converts blocks.
    """

    name: str
    values: int
    size: int
    convert: Callable[[Bytes, Array], None] | None = None
    split: Callable[[Bytes], Blocks] | None = None


def dequantize(blocks: Bytes, kind: int) -> Array:
    """Convert blocks to numbers.

    Args:
        blocks: the blocks' bytes [n, size], with the size of a block in ``QUANTIZATIONS``.
        kind: ggml's number for the type, one of ``QUANTIZATIONS``.

    Returns:
        The values [n, values of a block].
    """
    rule = QUANTIZATIONS[kind]
    if rule.convert is None and rule.split is None:
        from gguf import GGMLQuantizationType  # takes a third of a second to import
        from gguf.quants import dequantize as slow

        values: Array = slow(blocks, GGMLQuantizationType(kind))
        return values
    out = np.empty((len(blocks), rule.values), np.float32)
    step = max(1, _CHUNK_VALUES // rule.values)
    for start in range(0, len(blocks), step):
        part, values = blocks[start : start + step], out[start : start + step]
        if rule.split is not None:
            _from_blocks(FORMATS[BLOCK_KINDS_BY_NAME[rule.name]], rule.split(part), values)
        elif rule.convert is not None:
            rule.convert(part, values)
    return out


def _from_blocks(rule: BlockFormat, found: Blocks, out: Array) -> None:
    """Write the values of blocks, whose codes may be changed: (code - zero) x scale, and the minimum."""
    if rule.table:
        np.copyto(out, IQ4_VALUES[found.codes])
    elif rule.zero:
        codes = found.codes
        codes -= np.uint8(rule.zero)
        np.copyto(out, codes.view(np.int8))
    else:
        np.copyto(out, found.codes)
    parts = out.reshape(len(out), found.scales.shape[1], -1)
    parts *= _products(found.scales, found.factors)[:, :, None]
    if found.minima is None:
        return
    minima = _products(found.minima, found.minimum_factors)[:, :, None]
    if rule.nested:
        parts -= minima
    else:
        parts += minima


def _products(numbers: NDArray[Any], factors: NDArray[Any] | None) -> Array:
    """Return scales or minima [n, sub-blocks] as float32: numbers, times their block's factor [n, 1] if it has one."""
    return numbers.astype(np.float32) if factors is None else factors.astype(np.float32) * numbers


def _nibbles(packed: Bytes, width: int) -> Bytes:
    """Take bytes apart: of each ``width`` bytes first the low halves, then the high ones. [n, m] -> [n, 2 m]."""
    packed = np.ascontiguousarray(packed).reshape(len(packed), -1, 1, width)
    codes = np.empty((len(packed), packed.shape[1], 2, width), np.uint8)
    np.bitwise_and(packed[:, :, 0], 15, out=codes[:, :, 0])
    np.right_shift(packed[:, :, 0], 4, out=codes[:, :, 1])
    return codes.reshape(len(packed), -1)


def _pairs_of_bits(packed: Bytes, width: int) -> Bytes:
    """Take bytes apart into four codes of two bits, the lowest bits of ``width`` bytes first. [n, m] -> [n, 4 m]."""
    packed = np.ascontiguousarray(packed).reshape(len(packed), -1, 1, width)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return ((packed >> shifts) & np.uint8(3)).reshape(len(packed), -1)


def _bits(packed: Bytes) -> Bytes:
    """Return the bits of bytes, the lowest one first. [n, m] -> [n, 8 m]."""
    return np.unpackbits(np.ascontiguousarray(packed), axis=1, bitorder="little")


def _bit_planes(packed: Bytes) -> Bytes:
    """Return the lowest bits of all bytes, then their second bits, and so on. [n, m] -> [n, 8 m]."""
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    planes: Bytes = (np.ascontiguousarray(packed)[:, None, :] >> shifts) & np.uint8(1)
    return planes.reshape(len(packed), -1)


def _six_bit_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Take the 12 bytes of scales and minima of Q4_K and Q5_K apart into numbers of 6 bits. [n, 12] -> twice [n, 8]."""
    first, second, both = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (both & 15) | ((first >> 2) & 48)], axis=1)
    minima = np.concatenate([second & 63, (both >> 4) | ((second >> 2) & 48)], axis=1)
    return scales, minima


def _f32(blocks: Bytes, out: Array) -> None:
    np.copyto(out, np.ascontiguousarray(blocks).view("<f4"))


def _f16(blocks: Bytes, out: Array) -> None:
    np.copyto(out, np.ascontiguousarray(blocks).view("<f2"))


def _bf16(blocks: Bytes, out: Array) -> None:
    np.left_shift(np.ascontiguousarray(blocks).view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)


def _half(blocks: Bytes, start: int) -> NDArray[np.float16]:
    """Return the float16 number that each block has at a position [n, 1]."""
    return blocks[:, start : start + 2].copy().view("<f2")


def _q4_0(blocks: Bytes) -> Blocks:
    return Blocks(_nibbles(blocks[:, 2:], 16), _half(blocks, 0))


def _q4_1(blocks: Bytes) -> Blocks:
    return Blocks(_nibbles(blocks[:, 4:], 16), _half(blocks, 0), _half(blocks, 2))


def _q5_0(blocks: Bytes) -> Blocks:
    return Blocks(_nibbles(blocks[:, 6:], 16) | _bits(blocks[:, 2:6]) << np.uint8(4), _half(blocks, 0))


def _q5_1(blocks: Bytes) -> Blocks:
    return Blocks(
        _nibbles(blocks[:, 8:], 16) | _bits(blocks[:, 4:8]) << np.uint8(4), _half(blocks, 0), _half(blocks, 2)
    )


def _q8_0(blocks: Bytes) -> Blocks:
    return Blocks(blocks[:, 2:] ^ np.uint8(128), _half(blocks, 0))


def _q2_k(blocks: Bytes) -> Blocks:
    both = blocks[:, :16]
    codes = _pairs_of_bits(blocks[:, 16:80], 32)
    return Blocks(codes, (both & 15).view(np.int8), both >> 4, _half(blocks, 80), _half(blocks, 82))


def _q3_k(blocks: Bytes) -> Blocks:
    codes = _pairs_of_bits(blocks[:, 32:96], 32) | _bit_planes(blocks[:, :32]) << np.uint8(2)
    scales = _nibbles(blocks[:, 96:104], 8) | _pairs_of_bits(blocks[:, 104:108], 4) << np.uint8(4)
    return Blocks(codes, scales.view(np.int8) - np.int8(32), None, _half(blocks, 108))


def _q4_k(blocks: Bytes) -> Blocks:
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    codes = _nibbles(blocks[:, 16:], 32)
    return Blocks(codes, scales.view(np.int8), minima, _half(blocks, 0), _half(blocks, 2))


def _q5_k(blocks: Bytes) -> Blocks:
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    codes = _nibbles(blocks[:, 48:], 32) | _bit_planes(blocks[:, 16:48]) << np.uint8(4)
    return Blocks(codes, scales.view(np.int8), minima, _half(blocks, 0), _half(blocks, 2))


def _q6_k(blocks: Bytes) -> Blocks:
    codes = _nibbles(blocks[:, :128], 64) | _pairs_of_bits(blocks[:, 128:192], 32) << np.uint8(4)
    return Blocks(codes, blocks[:, 192:208].view(np.int8), None, _half(blocks, 208))


def _iq4_nl(blocks: Bytes) -> Blocks:
    return Blocks(_nibbles(blocks[:, 2:], 16), _half(blocks, 0))


def _iq4_xs(blocks: Bytes) -> Blocks:
    scales = _nibbles(blocks[:, 4:8], 1) | _pairs_of_bits(blocks[:, 2:4], 1) << np.uint8(4)
    return Blocks(_nibbles(blocks[:, 8:], 16), scales.view(np.int8) - np.int8(32), None, _half(blocks, 0))


QUANTIZATIONS: dict[int, Quantization] = {
    0: Quantization("F32", 1, 4, _f32),
    1: Quantization("F16", 1, 2, _f16),
    2: Quantization("Q4_0", 32, 18, split=_q4_0),
    3: Quantization("Q4_1", 32, 20, split=_q4_1),
    6: Quantization("Q5_0", 32, 22, split=_q5_0),
    7: Quantization("Q5_1", 32, 24, split=_q5_1),
    8: Quantization("Q8_0", 32, 34, split=_q8_0),
    10: Quantization("Q2_K", 256, 84, split=_q2_k),
    11: Quantization("Q3_K", 256, 110, split=_q3_k),
    12: Quantization("Q4_K", 256, 144, split=_q4_k),
    13: Quantization("Q5_K", 256, 176, split=_q5_k),
    14: Quantization("Q6_K", 256, 210, split=_q6_k),
    16: Quantization("IQ2_XXS", 256, 66),
    17: Quantization("IQ2_XS", 256, 74),
    18: Quantization("IQ3_XXS", 256, 98),
    19: Quantization("IQ1_S", 256, 50),
    20: Quantization("IQ4_NL", 32, 18, split=_iq4_nl),
    21: Quantization("IQ3_S", 256, 110),
    22: Quantization("IQ2_S", 256, 82),
    23: Quantization("IQ4_XS", 256, 136, split=_iq4_xs),
    29: Quantization("IQ1_M", 256, 56),
    30: Quantization("BF16", 1, 2, _bf16),
    34: Quantization("TQ1_0", 256, 54),
    35: Quantization("TQ2_0", 256, 66),
    39: Quantization("MXFP4", 32, 17),
}
"""The types of tensors that can be read, by ggml's numbers."""
