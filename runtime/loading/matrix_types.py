"""Selects the type of each matrix of a snapshot whose matrices have types of their own."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.loading.four_bits import four_bit_kind
from runtime.loading.quantized_source import QuantizedSource
from runtime.loading.snapshot_writer import Weight
from runtime.loading.tensor_source import TensorSource
from runtime.model.packing import PANEL_ROWS, MatrixKind, suits

_log = logging.getLogger("warmstart.load")

Rows = NDArray[Any]
"""Which rows of tensors a matrix has: their indices plus one, 0 for a row of zeros.

The rows of all matrices that a tensor or several are made of count one after the other.
"""

_SENSITIVE = frozenset(("embed", "head", "v", "down", "experts_down"))
"""Matrices that lose most in 4 bits, or in which the loss counts most; loadtests/ENGINE.md has the figures."""


def row_numbers(count: int) -> Rows:
    """Return the places of all rows of a tensor, in order."""
    return np.arange(1, count + 1)


class MatrixTypes(Protocol):
    """Gives each matrix a type."""

    def weight(
        self,
        name: str,
        shape: tuple[int, ...],
        read: Callable[[], NDArray[np.float32]],
        tensors: Sequence[str],
        rows: Rows | None,
        *,
        whole_rows: bool = True,
        read_rows: Callable[[int, int], NDArray[np.float32]] | None = None,
    ) -> Weight:
        """Return a matrix of a snapshot with its type.

        Args:
            name: the matrix's name in the snapshot.
            shape: its shape [outputs, inputs].
            read: returns its values.
            tensors: names of the checkpoint's tensors that contain it, all of the same shape: one, or one for each
                expert; empty if one is missing, which is reported later.
            rows: the tensors' rows that it has; None for all in order.
            whole_rows: whether its rows are those of the tensors, with all columns in order.
            read_rows: returns some of its values, see ``Weight``; None if only the whole matrix can be read.
        """


class FourBits:
    """Types for ``DTYPE=int4``: 4 bits, or 8 bits where 4 lose too much.

    Matrices that the checkpoint has in 4 bits keep their codes where the formats allow it. The others of them have 8
    bits, so that they are not quantized to 4 bits twice.

    Args:
        source: the checkpoint's tensors.
        model: the model's name, for messages.
    """

    def __init__(self, source: TensorSource, model: str) -> None:
        self._quantized = source if isinstance(source, QuantizedSource) else None
        self._model = model
        self._warned = False

    def weight(
        self,
        name: str,
        shape: tuple[int, ...],
        read: Callable[[], NDArray[np.float32]],
        tensors: Sequence[str],
        rows: Rows | None,
        *,
        whole_rows: bool = True,
        read_rows: Callable[[int, int], NDArray[np.float32]] | None = None,
    ) -> Weight:
        """Return a matrix of a snapshot with its type. Arguments as for ``MatrixTypes.weight``."""
        kind: MatrixKind | None = None
        source = self._quantized
        if source is not None and any(map(source.quantized, tensors)):
            kinds = {source.kind(tensor) if source.quantized(tensor) else None for tensor in tensors}
            kind = kinds.pop() if len(kinds) == 1 else None
            if kind is not None and whole_rows and suits(kind, shape[1]):
                places = row_numbers(shape[0]) if rows is None else rows
                packed = functools.partial(_packed, source, tensors, places)
                return Weight(name, shape, True, read, read_rows, kind=kind, pack_rows=packed)
            if not self._warned:
                _log.warning("%s: %s is served in int8, as its groups do not fit", self._model, name)
            self._warned = True
            kind = None
        elif name.rpartition(".")[2] not in _SENSITIVE:
            kind = four_bit_kind(shape[1])
        return Weight(name, shape, True, read, read_rows, kind=kind or "int8")


def _packed(source: QuantizedSource, tensors: Sequence[str], rows: Rows, start: int, stop: int) -> NDArray[np.uint8]:
    """Return some of a matrix's rows as packed bytes. All rows of a panel are of the same tensor."""
    wanted, height = rows[start:stop], source.shape(tensors[0])[0]
    last = np.maximum.reduceat(wanted, np.arange(0, len(wanted), PANEL_ROWS))  # of each panel
    numbers = np.maximum(last - 1, 0) // height
    starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1)]
    parts = np.split(wanted, [start * PANEL_ROWS for start in starts[1:]])
    packed = []
    for number, part in zip(numbers[starts], parts, strict=True):
        packed.append(source.pack_rows(tensors[number], np.where(part > 0, part - number * height, 0)))
    return np.concatenate(packed)
