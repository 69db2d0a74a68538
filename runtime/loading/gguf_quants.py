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

from runtime.model.block_formats import IQ4_VALUES

Bytes = NDArray[np.uint8]
Array = NDArray[np.float32]

_CHUNK_VALUES = 1 << 17  # converted at a time, so that intermediate results stay in the processor's cache


@dataclass(frozen=True, slots=True)
class Quantization:
    """A number type of GGUF tensors.

    Args:
        name: ggml's name.
        values: number of values in a block.
        size: size of a block in bytes.
        convert: writes blocks [n, size] to float32 [n, values]; None if the ``gguf`` package does it.
    """

    name: str
    values: int
    size: int
    convert: Callable[[Bytes, Array], None] | None = None


def dequantize(blocks: Bytes, kind: int) -> Array:
    """Convert blocks to numbers.

    Args:
        blocks: the blocks' bytes [n, size], with the size of a block in ``QUANTIZATIONS``.
        kind: ggml's number for the type, one of ``QUANTIZATIONS``.

    Returns:
        The values [n, values of a block].
    """
    rule = QUANTIZATIONS[kind]
    if rule.convert is None:
        from gguf import GGMLQuantizationType  # takes a third of a second to import
        from gguf.quants import dequantize as slow

        values: Array = slow(blocks, GGMLQuantizationType(kind))
        return values
    out = np.empty((len(blocks), rule.values), np.float32)
    step = max(1, _CHUNK_VALUES // rule.values)
    for start in range(0, len(blocks), step):
        rule.convert(blocks[start : start + step], out[start : start + step])
    return out


def _halves(blocks: Bytes, start: int) -> Array:
    """Return the float16 number that each block has at a position, as float32 [n]."""
    return blocks[:, start : start + 2].copy().view("<f2")[:, 0].astype(np.float32)


def _scale(codes: NDArray[Any], scales: Array, out: Array) -> None:
    """Multiply the codes [n, values] of each sub-block by its scale [n, sub-blocks]."""
    np.copyto(out, codes)
    parts = out.reshape(len(out), scales.shape[1], -1)
    parts *= scales[:, :, None]


def _scale_and_shift(codes: Bytes, scales: Array, minima: Array, out: Array) -> None:
    """Multiply the codes of each sub-block by its scale, and subtract its minimum [n, sub-blocks]."""
    _scale(codes, scales, out)
    parts = out.reshape(len(out), scales.shape[1], -1)
    parts -= minima[:, :, None]


def nibbles(packed: Bytes, width: int) -> Bytes:
    """Take bytes apart: of each ``width`` bytes first the low halves, then the high ones. [n, m] -> [n, 2 m]."""
    packed = np.ascontiguousarray(packed).reshape(len(packed), -1, 1, width)
    codes = np.empty((len(packed), packed.shape[1], 2, width), np.uint8)
    np.bitwise_and(packed[:, :, 0], 15, out=codes[:, :, 0])
    np.right_shift(packed[:, :, 0], 4, out=codes[:, :, 1])
    return codes.reshape(len(packed), -1)


def pairs_of_bits(packed: Bytes, width: int) -> Bytes:
    """Take bytes apart into four codes of two bits, the lowest bits of ``width`` bytes first. [n, m] -> [n, 4 m]."""
    packed = np.ascontiguousarray(packed).reshape(len(packed), -1, 1, width)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return ((packed >> shifts) & np.uint8(3)).reshape(len(packed), -1)


def bits(packed: Bytes) -> Bytes:
    """Return the bits of bytes, the lowest one first. [n, m] -> [n, 8 m]."""
    return np.unpackbits(np.ascontiguousarray(packed), axis=1, bitorder="little")


def bit_planes(packed: Bytes) -> Bytes:
    """Return the lowest bits of all bytes, then their second bits, and so on. [n, m] -> [n, 8 m]."""
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    planes: Bytes = (np.ascontiguousarray(packed)[:, None, :] >> shifts) & np.uint8(1)
    return planes.reshape(len(packed), -1)


def _f32(blocks: Bytes, out: Array) -> None:
    np.copyto(out, np.ascontiguousarray(blocks).view("<f4"))


def _f16(blocks: Bytes, out: Array) -> None:
    np.copyto(out, np.ascontiguousarray(blocks).view("<f2"))


def _bf16(blocks: Bytes, out: Array) -> None:
    np.left_shift(np.ascontiguousarray(blocks).view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)


def _q4_0(blocks: Bytes, out: Array) -> None:
    codes = nibbles(blocks[:, 2:], 16).view(np.int8)
    codes -= 8
    _scale(codes, _halves(blocks, 0)[:, None], out)


def _q4_1(blocks: Bytes, out: Array) -> None:
    _scale(nibbles(blocks[:, 4:], 16), _halves(blocks, 0)[:, None], out)
    out += _halves(blocks, 2)[:, None]


def _q5_0(blocks: Bytes, out: Array) -> None:
    codes = nibbles(blocks[:, 6:], 16)
    high = bits(blocks[:, 2:6])
    high <<= 4
    codes |= high
    signed = codes.view(np.int8)
    signed -= 16
    _scale(signed, _halves(blocks, 0)[:, None], out)


def _q5_1(blocks: Bytes, out: Array) -> None:
    codes = nibbles(blocks[:, 8:], 16)
    codes |= bits(blocks[:, 4:8]) << 4
    _scale(codes, _halves(blocks, 0)[:, None], out)
    out += _halves(blocks, 2)[:, None]


def _q8_0(blocks: Bytes, out: Array) -> None:
    _scale(blocks[:, 2:].copy().view(np.int8), _halves(blocks, 0)[:, None], out)


def _q2_k(blocks: Bytes, out: Array) -> None:
    packed = blocks[:, :16]
    scales = _halves(blocks, 80)[:, None] * (packed & 15)
    minima = _halves(blocks, 82)[:, None] * (packed >> 4)
    _scale_and_shift(pairs_of_bits(blocks[:, 16:80], 32), scales, minima, out)


def _q3_k(blocks: Bytes, out: Array) -> None:
    codes = pairs_of_bits(blocks[:, 32:96], 32)
    codes |= bit_planes(blocks[:, :32]) << 2
    signed = codes.view(np.int8)
    signed -= 4
    six_bits = nibbles(blocks[:, 96:104], 8) | (pairs_of_bits(blocks[:, 104:108], 4) << 4)
    scales = _halves(blocks, 108)[:, None] * (six_bits.view(np.int8) - 32)
    _scale(signed, scales, out)


def six_bit_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Take the 12 bytes of scales and minima of Q4_K and Q5_K apart into numbers of 6 bits. [n, 12] -> twice [n, 8]."""
    first, second, both = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (both & 15) | ((first >> 2) & 48)], axis=1)
    minima = np.concatenate([second & 63, (both >> 4) | ((second >> 2) & 48)], axis=1)
    return scales, minima


def _scales_and_minima(blocks: Bytes) -> tuple[Array, Array]:
    """Return the scales and minima [n, 8] of Q4_K and Q5_K, from two float16 numbers and 12 bytes of 6-bit codes."""
    scales, minima = six_bit_pairs(blocks[:, 4:16])
    return _halves(blocks, 0)[:, None] * scales, _halves(blocks, 2)[:, None] * minima


def _q4_k(blocks: Bytes, out: Array) -> None:
    _scale_and_shift(nibbles(blocks[:, 16:], 32), *_scales_and_minima(blocks), out)


def _q5_k(blocks: Bytes, out: Array) -> None:
    codes = nibbles(blocks[:, 48:], 32)
    codes |= bit_planes(blocks[:, 16:48]) << 4
    _scale_and_shift(codes, *_scales_and_minima(blocks), out)


def _q6_k(blocks: Bytes, out: Array) -> None:
    codes = nibbles(blocks[:, :128], 64)
    high = pairs_of_bits(blocks[:, 128:192], 32)
    high <<= 4
    codes |= high
    signed = codes.view(np.int8)
    signed -= 32
    scales = _halves(blocks, 208)[:, None] * blocks[:, 192:208].view(np.int8)
    _scale(signed, scales, out)


def _iq4_nl(blocks: Bytes, out: Array) -> None:
    _scale(IQ4_VALUES[nibbles(blocks[:, 2:], 16)], _halves(blocks, 0)[:, None], out)


def _iq4_xs(blocks: Bytes, out: Array) -> None:
    low = nibbles(blocks[:, 4:8], 1)
    high = pairs_of_bits(blocks[:, 2:4], 1)
    scales = _halves(blocks, 0)[:, None] * ((low | (high << 4)).view(np.int8) - 32)
    _scale(IQ4_VALUES[nibbles(blocks[:, 8:], 16)], scales, out)


QUANTIZATIONS: dict[int, Quantization] = {
    0: Quantization("F32", 1, 4, _f32),
    1: Quantization("F16", 1, 2, _f16),
    2: Quantization("Q4_0", 32, 18, _q4_0),
    3: Quantization("Q4_1", 32, 20, _q4_1),
    6: Quantization("Q5_0", 32, 22, _q5_0),
    7: Quantization("Q5_1", 32, 24, _q5_1),
    8: Quantization("Q8_0", 32, 34, _q8_0),
    10: Quantization("Q2_K", 256, 84, _q2_k),
    11: Quantization("Q3_K", 256, 110, _q3_k),
    12: Quantization("Q4_K", 256, 144, _q4_k),
    13: Quantization("Q5_K", 256, 176, _q5_k),
    14: Quantization("Q6_K", 256, 210, _q6_k),
    16: Quantization("IQ2_XXS", 256, 66),
    17: Quantization("IQ2_XS", 256, 74),
    18: Quantization("IQ3_XXS", 256, 98),
    19: Quantization("IQ1_S", 256, 50),
    20: Quantization("IQ4_NL", 32, 18, _iq4_nl),
    21: Quantization("IQ3_S", 256, 110),
    22: Quantization("IQ2_S", 256, 82),
    23: Quantization("IQ4_XS", 256, 136, _iq4_xs),
    29: Quantization("IQ1_M", 256, 56),
    30: Quantization("BF16", 1, 2, _bf16),
    34: Quantization("TQ1_0", 256, 54),
    35: Quantization("TQ2_0", 256, 66),
    39: Quantization("MXFP4", 32, 17),
}
"""The types of tensors that can be read, by ggml's numbers."""
