"""Reads the 4-bit matrices of AWQ and GPTQ checkpoints, and packs them without quantizing again.

A matrix ``NAME.weight`` [N, K] is stored as ``NAME.qweight`` (codes of 4 bits, eight in an int32), ``NAME.qzeros`` (the
codes of the value zero, in the same way) and ``NAME.scales`` [groups, N]. AWQ packs eight outputs in a word, in the
order 0 2 4 6 1 3 5 7 from the lowest bits: codes are [K, N / 8] (AutoAWQ, ``WQLinear_GEMM``). GPTQ packs eight inputs:
codes are [K / 8, N], zeros [groups, N / 8] in order, and ``NAME.g_idx`` [K] has each column's group (AutoGPTQ,
``QuantLinear``).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from runtime.loading.safetensors_source import DamagedSafetensors, SafetensorsSource
from runtime.model.block_formats import BlockKind, Blocks, pack_blocks
from runtime.model.packing import PANEL_ROWS
from runtime.model.quantization import CheckpointQuantization

_WORD = 8  # codes in an int32
_AWQ_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # where a word has each of eight outputs
_STEP = 32  # columns that share a scale in the formats of ``runtime.model.block_formats``
_SYMMETRIC = 8  # the zero of every group in symmetric quantization


class QuantizedSource:
    """The tensors of an AWQ or GPTQ checkpoint, with its quantized matrices as ``NAME.weight``.

    Args:
        source: the checkpoint's files.
        scheme: how its matrices are quantized.

    Raises:
        DamagedSafetensors: tensors of a matrix are missing or do not fit together; the message names one.
    """

    def __init__(self, source: SafetensorsSource, scheme: CheckpointQuantization) -> None:
        self._source = source
        self._scheme = scheme
        self._shapes: dict[str, tuple[int, int]] = {}
        self._names = set(source.names())
        for name in source.names():
            if name.endswith(".qweight"):
                base = name.removesuffix("qweight")
                self._names -= {base + part for part in ("qweight", "qzeros", "scales", "g_idx")}
                self._names.add(f"{base}weight")
                self._shapes[f"{base}weight"] = self._checked_shape(base)
        self._kinds: dict[str, BlockKind | None] = {}

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._shapes.get(name) or self._source.shape(name)

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a whole tensor as float32."""
        return self.read_rows(name, 0, self._shapes[name][0]) if name in self._shapes else self._source.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return a matrix's rows from ``start`` to before ``stop`` as float32."""
        if name not in self._shapes:
            return self._source.read_rows(name, start, stop)
        rows = np.arange(start, stop)
        groups = self._groups(name)
        values = self._codes(name, rows).astype(np.float32)
        values -= self._zeros(name, rows)[:, groups]
        values *= self._scales(name, rows)[:, groups]
        return values

    def quantized(self, name: str) -> bool:
        """Return whether a tensor is a quantized matrix."""
        return name in self._shapes

    def kind(self, name: str) -> BlockKind | None:
        """Return the format to which a quantized matrix is packed.

        Returns:
            ``q4_0`` if zero has the code 8 in all groups, which keeps all weights exactly; ``q4_1`` otherwise, whose
            minima -zero x scale are rounded to half precision, by at most 1 / 2048 of them and so 1 / 128 of a step;
            None if columns of a group are not side by side ("act-order").
        """
        if name not in self._kinds:
            rows, columns = self._shapes[name]
            groups = self._groups(name)
            ordered = columns % _STEP == 0 and np.array_equal(groups, np.repeat(groups[::_STEP], _STEP))
            symmetric = ordered and bool((self._zeros(name, np.arange(rows)) == _SYMMETRIC).all())
            self._kinds[name] = ("q4_0" if symmetric else "q4_1") if ordered else None
        return self._kinds[name]

    def pack_rows(self, name: str, places: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Pack some rows of a quantized matrix for which ``kind`` has a format, as ``pack_blocks`` returns them.

        Args:
            name: the matrix.
            places: the rows' indices plus one; 0 for a row of zeros.
        """
        kind = self.kind(name)
        if kind is None:
            raise ValueError(f"{name} cannot be packed")
        places = np.pad(places, (0, -len(places) % PANEL_ROWS))
        rows = np.maximum(places - 1, 0)
        codes, groups = self._codes(name, rows), self._groups(name)[::_STEP]
        scales = np.where(places[:, None] > 0, self._scales(name, rows)[:, groups], 0)
        minima = None if kind == "q4_0" else (-self._zeros(name, rows)[:, groups] * scales).astype(np.float16)
        return pack_blocks(Blocks(codes, scales.astype(np.float16), minima), kind)

    def _checked_shape(self, base: str) -> tuple[int, int]:
        """Return the shape of a matrix [N, K], after checking its tensors."""
        source, awq = self._source, self._scheme.method == "awq"
        present = source.names()
        if missing := [base + part for part in ("qzeros", "scales") if base + part not in present]:
            raise DamagedSafetensors(f"{base}qweight has no {missing[0]}")
        first, second = source.integer_shape(f"{base}qweight", 2)
        rows, columns = (second * _WORD, first) if awq else (second, first * _WORD)
        groups = columns // self._scheme.group if self._scheme.group else 1
        expected = {"qzeros": (groups, rows // _WORD), "scales": (groups, rows), "g_idx": (columns,)}
        for part, shape in expected.items():
            name = base + part
            if name not in present:
                continue
            found = source.shape(name) if part == "scales" else source.integer_shape(name, len(shape))
            if found != shape:
                raise DamagedSafetensors(f"{name} is {list(found)} where {base}qweight needs {list(shape)}")
        if groups * (self._scheme.group or columns) != columns:
            raise DamagedSafetensors(f"{base}qweight has {columns} columns, not whole groups of {self._scheme.group}")
        if (
            f"{base}g_idx" in present
            and not 0 <= (index := source.integers(f"{base}g_idx")).min() <= index.max() < groups
        ):
            raise DamagedSafetensors(f"{base}g_idx names a group that is not one of {groups}")
        return rows, columns

    def _groups(self, name: str) -> NDArray[np.integer]:
        """Return each column's group [K]."""
        base, columns = name.removesuffix("weight"), self._shapes[name][1]
        if f"{base}g_idx" in self._source.names():
            return self._source.integers(f"{base}g_idx")
        return np.arange(columns) // (self._scheme.group or columns)

    def _codes(self, name: str, rows: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return the codes of some rows [rows, K]."""
        words = self._source.integers(name.removesuffix("weight") + "qweight")
        if self._scheme.method == "awq":
            return np.ascontiguousarray(_nibbles(words, rows, _AWQ_PLACES).T)
        chosen = np.ascontiguousarray(words[:, rows].T).view(np.uint8)  # [rows, K / 2], the lower code of a byte first
        codes = np.empty((len(rows), 2 * chosen.shape[1]), np.uint8)
        np.bitwise_and(chosen, 15, out=codes[:, ::2])
        np.right_shift(chosen, 4, out=codes[:, 1::2])
        return codes

    def _zeros(self, name: str, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the codes of the value zero of some rows [rows, groups]."""
        words = self._source.integers(name.removesuffix("weight") + "qzeros")
        places = _AWQ_PLACES if self._scheme.method == "awq" else np.arange(_WORD)
        return _nibbles(words, rows, places).T.astype(np.float32) + np.float32(self._scheme.zero_offset)

    def _scales(self, name: str, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the scales of some rows [rows, groups]."""
        scales: NDArray[np.float32] = self._source.read(name.removesuffix("weight") + "scales")[:, rows].T
        return scales


def _nibbles(words: NDArray[np.int32], outputs: NDArray[np.integer], places: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the codes of some outputs [n, outputs] of words that have eight each [n, N / 8]."""
    shifts = (4 * places[outputs % _WORD]).astype(np.uint32)
    codes: NDArray[np.uint32] = (words.view(np.uint32)[:, outputs // _WORD] >> shifts) & np.uint32(15)
    return codes.astype(np.uint8)
