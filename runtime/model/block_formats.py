"""Packs matrices that keep the quantization of a GGUF file: codes of a few bits with a scale for each 16 or 32 columns.

A value is ``scale * (code - zero)``, plus a minimum where the type has minima. The numbers are the file's own: codes,
half-precision scales and integer scales are stored as they are, only in another order, so that no weight changes.

A panel of 16 output rows is stored as its scales, then its codes. In simple formats the scales of 32 columns are 16
float16 numbers, one for each row, then 16 minima if there are any. In nested formats, 256 columns have 16 float16
factors, then 16 factors of the minima, then for each 16 or 32 columns 16 int8 scales, then in the same way the uint8
minima; a scale is the product of the factor and the int8 number, which float32 holds exactly.

The codes of 32 columns are stored in planes of their bits, for codes [8][16 rows][4 columns]: the lowest four bits
[4][16][4], where the first of two consecutive codes is in the lower half of a byte; two bits [2][16][4], four
consecutive codes from the lowest bits of a byte to the highest; one bit [1][16][4], eight in the same way. Codes of 2,
3, 4, 5 and 6 bits have the planes 2, 2 + 1, 4, 4 + 1 and 4 + 2, the lower bits first. Codes of 8 bits are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

BlockKind = Literal["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"]
BLOCK_KINDS: tuple[BlockKind, ...] = get_args(BlockKind)

_ROWS = 16
_STEP = 32  # columns whose codes are stored together
_OUTER = 256  # columns that share a factor in nested formats
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
"""The values of the codes of IQ4_NL and IQ4_XS, from ``kvalues_iq4nl`` in ggml-common.h."""


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A format of quantized matrices; the counterpart of ``BlockFormat`` in block_formats.h.

    Args:
        bits: bits of a stored code.
        group: columns that share a scale.
        zero: code of the value zero; not used with a table.
        minima: whether groups have minima.
        nested: whether scales are integers times a factor of 256 columns.
        table: whether a code is an index into ``IQ4_VALUES``.
    """

    bits: int
    group: int = 32
    zero: int = 0
    minima: bool = False
    nested: bool = False
    table: bool = False

    @property
    def columns(self) -> int:
        """Number of which a matrix's width must be a multiple."""
        return _OUTER if self.nested else _STEP

    def panel_bytes(self, columns: int) -> tuple[int, int]:
        """Return the bytes of a panel's scales, and of its codes.

        Args:
            columns: width of the matrix.
        """
        numbers = 2 if self.minima else 1
        size = _ROWS * (columns // self.group if self.nested else 2 * (columns // _STEP))
        outer = 2 * _ROWS * (columns // _OUTER) if self.nested else 0
        return numbers * (size + outer), _ROWS * columns * self.bits // 8


FORMATS: Mapping[BlockKind, BlockFormat] = {
    "q4_0": BlockFormat(4, zero=8),
    "q4_1": BlockFormat(4, minima=True),
    "q5_0": BlockFormat(5, zero=16),
    "q5_1": BlockFormat(5, minima=True),
    "q8_0": BlockFormat(8, zero=128),
    "q2_k": BlockFormat(2, 16, minima=True, nested=True),
    "q3_k": BlockFormat(3, 16, zero=4, nested=True),
    "q4_k": BlockFormat(4, minima=True, nested=True),
    "q5_k": BlockFormat(5, minima=True, nested=True),
    "q6_k": BlockFormat(6, 16, zero=32, nested=True),
    "iq4_nl": BlockFormat(4, table=True),
    "iq4_xs": BlockFormat(4, table=True, nested=True),
}


@dataclass(frozen=True, slots=True)
class Blocks:
    """The numbers of a quantized matrix [N, K].

    Args:
        codes: uint8 [N, K].
        scales: float16 [N, K / 32], or int8 [N, K / group] in nested formats.
        minima: the same for minima, uint8 instead of int8; None without minima. A simple format adds them to the
            product of code and scale, a nested one subtracts them.
        factors: float16 [N, K / 256] factors of the scales in nested formats, else None.
        minimum_factors: float16 [N, K / 256] factors of the minima in nested formats with minima, else None.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[Any]
    minima: NDArray[Any] | None = None
    factors: NDArray[Any] | None = None
    minimum_factors: NDArray[Any] | None = None


def block_bytes(rows: int, columns: int, kind: BlockKind) -> int:
    """Return the size of a packed matrix in bytes, with its scales.

    Args:
        rows: number of outputs, padded to a multiple of 16.
        columns: number of inputs, a multiple of the format's ``columns``.
        kind: the format.
    """
    return rows // _ROWS * sum(FORMATS[kind].panel_bytes(columns))


def pack_blocks(blocks: Blocks, kind: BlockKind) -> NDArray[np.uint8]:
    """Pack a quantized matrix into panels.

    Args:
        blocks: its numbers; the number of rows is a multiple of 16.
        kind: its format.

    Returns:
        The panels' bytes, flat.
    """
    rule = FORMATS[kind]
    n, k = blocks.codes.shape
    panels = n // _ROWS

    def by_panel(numbers: NDArray[Any], parts: int) -> NDArray[np.uint8]:
        """Arrange [N, parts * g] numbers as bytes [panels, parts, bytes of g x 16 rows]."""
        arranged = numbers.reshape(panels, _ROWS, parts, -1).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(arranged).view(np.uint8).reshape(panels, parts, -1)

    parts = k // rule.columns
    numbers = [blocks.factors, blocks.minimum_factors, blocks.scales, blocks.minima]
    scales = np.concatenate([by_panel(part, parts) for part in numbers if part is not None], axis=2)
    words = np.ascontiguousarray(blocks.codes).view(np.uint32).reshape(panels, _ROWS, k // _STEP, 8)
    codes = _planes(np.ascontiguousarray(words.transpose(0, 2, 3, 1)), rule.bits)
    flat = [array.reshape(panels, -1) for array in (scales, np.ascontiguousarray(codes).view(np.uint8))]
    return np.concatenate(flat, axis=1).reshape(-1)


def _planes(words: NDArray[np.uint32], bits: int) -> NDArray[np.uint32]:
    """Take codes apart: of four columns in each word [panels, K / 32, 8, 16], to planes [panels, K / 32, bits, 16]."""
    if bits == 8:
        return words
    planes, at = [], 0
    for width in (4, 2, 1):
        if not bits & width:
            continue
        count = 8 // width  # codes in a byte
        mask = np.uint32(0x01010101 * ((1 << width) - 1))
        part = ((words >> np.uint32(at)) & mask).reshape(*words.shape[:2], width, count, _ROWS)
        plane = part[:, :, :, 0].copy()
        for i in range(1, count):
            plane |= part[:, :, :, i] << np.uint32(i * width)
        planes.append(plane)
        at += width
    return np.concatenate(planes, axis=2)


def unpack_blocks(data: NDArray[np.uint8], rows: int, columns: int, kind: BlockKind) -> NDArray[np.float32]:
    """Return the values of a packed matrix [rows, columns], as ``gguf.quants.dequantize`` computes them.

    Args:
        data: the panels' bytes.
        rows: number of outputs, without padding.
        columns: number of inputs.
        kind: the format.
    """
    rule = FORMATS[kind]
    scale_bytes, code_bytes = rule.panel_bytes(columns)
    panels = data.reshape(-1, scale_bytes + code_bytes)
    scales, minima = _scales(panels[:, :scale_bytes], columns, rule)
    codes = _codes(panels[:, scale_bytes:], columns, rule.bits)
    signed = IQ4_VALUES[codes] if rule.table else codes.astype(np.int16) - rule.zero
    values = signed.astype(np.float32) * np.repeat(scales, rule.group, axis=1)
    if minima is not None:
        values += np.repeat(minima, rule.group, axis=1)
    return np.ascontiguousarray(values[:rows])


def _codes(data: NDArray[np.uint8], columns: int, bits: int) -> NDArray[np.uint8]:
    """Return the codes [N, K] of panels [panels, bytes]."""
    panels = len(data)
    words = np.ascontiguousarray(data).view(np.uint32).reshape(panels, columns // _STEP, bits, _ROWS)
    if bits != 8:
        found = np.zeros((panels, columns // _STEP, 8, _ROWS), np.uint32)
        row = at = 0
        for width in (4, 2, 1):
            if bits & width:
                mask = np.uint32(0x01010101 * ((1 << width) - 1))
                for i in range(8):
                    plane = words[:, :, row + i * width // 8]
                    found[:, :, i] |= ((plane >> np.uint32(i * width % 8)) & mask) << np.uint32(at)
                row, at = row + width, at + width
        words = found
    return np.ascontiguousarray(words.transpose(0, 3, 1, 2)).view(np.uint8).reshape(panels * _ROWS, columns)


def _scales(
    data: NDArray[np.uint8], columns: int, rule: BlockFormat
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return the scales and the minima to add [N, K / group] of panels [panels, bytes]."""
    panels, parts = len(data), columns // rule.columns
    pieces = np.ascontiguousarray(data).reshape(panels, parts, -1)
    at = 0

    def take(count: int, dtype: Any) -> NDArray[np.float32]:
        """Return the next numbers of each part, as float32 [N, parts * count]."""
        nonlocal at
        size = count * _ROWS * np.dtype(dtype).itemsize
        numbers = np.ascontiguousarray(pieces[:, :, at : at + size]).view(dtype).reshape(panels, parts, count, _ROWS)
        at += size
        by_row: NDArray[Any] = numbers.transpose(0, 3, 1, 2).reshape(panels * _ROWS, -1)
        return by_row.astype(np.float32)

    if not rule.nested:
        scales = take(1, "<f2")
        return scales, take(1, "<f2") if rule.minima else None
    factors = [take(1, "<f2") for _ in range(2 if rule.minima else 1)]
    count = _OUTER // rule.group
    numbers = [take(count, dtype) for dtype in (np.int8, np.uint8)[: len(factors)]]
    products = [number * np.repeat(factor, count, axis=1) for number, factor in zip(numbers, factors, strict=True)]
    return products[0], -products[1] if rule.minima else None
