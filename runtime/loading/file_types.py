"""Packs the matrices of a GGUF file in the file's own types, row by row, without a change of any weight.

Rows may be rearranged and padded. Where columns are, as in attention with padded heads, or where blocks do not fit a
matrix's width, a quantized matrix is dequantized and quantized again to int8 with a scale for 64 columns.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ModelUnavailable
from runtime.loading.gguf_blocks import matrix_kind, pack_rows
from runtime.loading.gguf_quants import QUANTIZATIONS
from runtime.loading.gguf_source import GgufSource
from runtime.loading.matrix_types import Rows
from runtime.loading.snapshot_writer import Weight
from runtime.model.packing import MatrixKind, suits

_log = logging.getLogger("warmstart.load")


class FileTypes:
    """Types for ``DTYPE=gguf``: those of a GGUF file's tensors.

    Args:
        source: the file's tensors.
        model: the model's name, for error messages.
    """

    def __init__(self, source: GgufSource, model: str) -> None:
        self._source = source
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
        """Return a matrix of a snapshot in its type in the file. Arguments as for ``MatrixTypes.weight``.

        Raises:
            ModelUnavailable: the tensor has a type that is not served as it is.
        """
        tensor = tensors[0] if tensors else None  # these files have one tensor for all experts
        kind: MatrixKind = "int8" if tensor is None else self._kind(tensor)
        if kind in ("float32", "float16", "bfloat16", "int8"):
            return Weight(name, shape, True, read, read_rows, kind=kind)
        if tensor is None or not whole_rows or not suits(kind, shape[1]):
            if not self._warned:
                _log.warning("%s: %s is served in int8, as its columns are padded", self._model, name)
            self._warned = True
            return Weight(name, shape, True, read, read_rows, kind="int8")
        packed = functools.partial(self._packed, tensor, kind, rows)
        return Weight(name, shape, True, read, read_rows, kind=kind, pack_rows=packed)

    def _kind(self, tensor: str) -> MatrixKind:
        number = self._source.type_number(tensor)
        kind = matrix_kind(number)
        if kind is None:
            raise ModelUnavailable(
                f"DTYPE=gguf cannot serve {self._model}: {tensor} has the type {QUANTIZATIONS[number].name}, "
                "which is not served as it is; set DTYPE=auto"
            )
        return kind

    def _packed(self, tensor: str, kind: Any, rows: Rows | None, start: int, stop: int) -> NDArray[np.uint8]:
        """Return some of a matrix's rows as packed bytes."""
        if rows is None:
            return pack_rows(self._source.raw_rows(tensor, start, stop), kind)
        wanted = rows[start:stop]
        present = wanted[wanted > 0]
        first, last = (int(present.min()) - 1, int(present.max())) if present.size else (0, 1)
        raw = self._source.raw_rows(tensor, first, last)
        data = np.zeros((len(wanted), raw.shape[1]), np.uint8)
        data[wanted > 0] = raw[present - 1 - first]
        return pack_rows(data, kind)
