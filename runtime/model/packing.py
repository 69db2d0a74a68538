"""Packs weight matrices in the layout that the CPU kernels read: panels of 16 output rows, contiguous along the input.

For each group of input columns, a panel stores its 16 output rows side by side, so that a vector register loads one
group: ``float32 [N/16][K][16]``, ``bfloat16 [N/16][K/2][16][2]`` and ``int8 [N/16][K/4][16][4]`` (the operand layout of
the dot-product instructions). Rows and columns are padded with zeros to a multiple of 16. An int8
matrix has a scale for every 64 columns of a row, float32 ``[N/16][K/64][16]``. ``float16 [N/16][K][16]`` keeps the
weights of GGUF files; ``runtime.model.block_formats`` has the formats of their quantized matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from runtime.model.block_formats import BLOCK_KINDS, FORMATS, BlockKind, block_bytes, unpack_blocks

WeightKind = Literal["float32", "bfloat16", "int8"]
SnapshotKind = Literal["float32", "bfloat16", "int8", "int4", "gguf"]
"""A snapshot's matrices are all of one kind, or each has its own: as in the GGUF file (``gguf``), or of 4 or 8 bits."""
MIXED_KINDS: frozenset[SnapshotKind] = frozenset(("int4", "gguf"))
MatrixKind = Literal["float32", "bfloat16", "int8", "float16"] | BlockKind
MATRIX_KINDS: tuple[MatrixKind, ...] = ("float32", "bfloat16", "int8", "float16", *BLOCK_KINDS)

PANEL_ROWS = 16
_COLUMNS = {"float32": 1, "bfloat16": 2, "int8": 4}  # per group
_COLUMN_MULTIPLE = 16  # a vector of activations
GROUP_COLUMNS = 64
_INT8_ZERO = 128  # stored unsigned, because the dot-product instructions multiply u8 by s8


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed matrix.

    Args:
        data: the panels' bytes, uint8, flat.
        scales: the value of one int8 step for each row and group of columns, float32, flat; None for other kinds.
    """

    data: NDArray[np.uint8]
    scales: NDArray[np.float32] | None


def padded_rows(rows: int) -> int:
    """Return a number of rows, padded to whole panels."""
    return -(-rows // PANEL_ROWS) * PANEL_ROWS


def padded(rows: int, columns: int) -> tuple[int, int]:
    """Return the padded shape of a matrix."""
    return padded_rows(rows), -(-columns // _COLUMN_MULTIPLE) * _COLUMN_MULTIPLE


def suits(kind: MatrixKind, columns: int) -> bool:
    """Return whether a matrix of a width can be stored in a kind: block formats need whole blocks."""
    return kind not in BLOCK_KINDS or columns % FORMATS[kind].columns == 0


def packed_bytes(rows: int, columns: int, kind: MatrixKind) -> int:
    """Return the size of a packed matrix in bytes, without the scales of an int8 matrix."""
    n, k = padded(rows, columns)
    if kind in BLOCK_KINDS:
        return block_bytes(n, k, kind)
    return n * k * {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}[kind]


def scale_count(rows: int, columns: int) -> int:
    """Return the number of scales of a packed int8 matrix."""
    n, k = padded(rows, columns)
    return n * -(-k // GROUP_COLUMNS)


def pack(matrix: NDArray[np.float32], kind: MatrixKind) -> Packed:
    """Pack one weight matrix. Block formats are packed by ``runtime.loading``: ``gguf_blocks`` and ``four_bits``.

    Args:
        matrix: the matrix [N, K], output rows x input columns.
        kind: float32 keeps the values; bfloat16 and float16 round them to nearest even; int8 quantizes each row's
            groups of 64 columns symmetrically to -127 ... 127 steps of the group's largest magnitude / 127.
    """
    n, k = padded(*matrix.shape)
    full = matrix.astype(np.float32, order="C", copy=False)
    if matrix.shape != (n, k):
        full = np.zeros((n, k), np.float32)
        full[: matrix.shape[0], : matrix.shape[1]] = matrix
    scales = None
    values: NDArray[Any] = full
    if kind == "bfloat16":
        bits = full.view(np.uint32)
        rounded = (bits >> 16) & 1
        rounded += bits
        rounded += 0x7FFF
        values = rounded.view(np.uint16)[:, 1::2]
    elif kind == "float16":
        panels = full.astype(np.float16).reshape(n // PANEL_ROWS, PANEL_ROWS, k).transpose(0, 2, 1)
        return Packed(np.ascontiguousarray(panels).view(np.uint8).reshape(-1), None)
    elif kind == "int8":
        values, by_row = _quantized(full)
        scales = np.ascontiguousarray(by_row.reshape(n // PANEL_ROWS, PANEL_ROWS, -1).transpose(0, 2, 1)).reshape(-1)
    # A group of columns has four bytes in all kinds, so panels are transposed four bytes at a time.
    groups = np.ascontiguousarray(values).view(np.uint32).reshape(n // PANEL_ROWS, PANEL_ROWS, -1)
    return Packed(np.ascontiguousarray(groups.transpose(0, 2, 1)).view(np.uint8).reshape(-1), scales)


def _quantized(matrix: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return a padded matrix's int8 steps, stored unsigned [N, K], and the size of a step [N, groups of columns]."""
    n, k = matrix.shape
    steps = np.empty((n, k), np.float32)
    np.abs(matrix, out=steps)
    by_group = steps.reshape(n, -1, GROUP_COLUMNS) if k % GROUP_COLUMNS == 0 else None
    if by_group is not None:
        largest = by_group.max(axis=2)
    else:
        largest = np.maximum.reduceat(steps, np.arange(0, k, GROUP_COLUMNS), axis=1)
    by_row = np.maximum(largest / np.float32(127), np.finfo(np.float32).tiny)
    if by_group is not None:
        np.divide(matrix.reshape(by_group.shape), by_row[:, :, None], out=by_group)
    else:
        np.divide(matrix, _by_column(by_row, k), out=steps)
    np.rint(steps, out=steps)
    steps += _INT8_ZERO
    return steps.astype(np.uint8), by_row


def unpack(packed: Packed, rows: int, columns: int, kind: MatrixKind) -> NDArray[np.float32]:
    """Unpack a matrix to float32 [rows, columns], as rounded or quantized by its kind.

    Raises:
        ValueError: an int8 matrix has no scales.
    """
    n, k = padded(rows, columns)
    if kind in BLOCK_KINDS:
        return unpack_blocks(packed.data, rows, columns, kind)
    if kind == "float16":
        halves = packed.data.view(np.float16).reshape(n // PANEL_ROWS, k, PANEL_ROWS).transpose(0, 2, 1)
        return halves.reshape(n, k)[:rows, :columns].astype(np.float32)
    group = _COLUMNS[kind]
    stored: Any = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.uint8}[kind]
    panels = packed.data.view(stored).reshape(n // PANEL_ROWS, k // group, PANEL_ROWS, group)
    values: NDArray[Any] = panels.transpose(0, 2, 1, 3).reshape(n, k)[:rows, :columns]
    if kind == "float32":
        return np.ascontiguousarray(values)
    if kind == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if packed.scales is None:
        raise ValueError("an int8 matrix has scales")
    by_row = packed.scales.reshape(n // PANEL_ROWS, -1, PANEL_ROWS).transpose(0, 2, 1).reshape(n, -1)
    return (values.astype(np.float32) - _INT8_ZERO) * _by_column(by_row[:rows], columns)


def _by_column(scales: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """Repeat the scales of groups for each column: [N, groups] -> [N, columns]."""
    return np.repeat(scales, GROUP_COLUMNS, axis=1)[:, :columns]
