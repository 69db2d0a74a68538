"""Reads the tensors of a GGUF model, also of a split one, and converts them to float32 when they are asked for.

Nothing here imports torch or transformers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from runtime.loading.gguf_quants import QUANTIZATIONS, dequantize
from runtime.model.gguf_header import GGUFHeader, TensorPlace, read_header
from runtime.model.gguf_split import parts


class GgufSource:
    """The tensors of a GGUF model, from files that stay open while this object exists.

    They are read, not mapped: mapped pages would count as this process's memory until the model is converted.

    Args:
        header: the model's header, from ``read_header``.

    Raises:
        ValueError: a tensor has an unknown type or an impossible size or position; the message names file and tensor.
        OSError: a file cannot be read.
    """

    def __init__(self, header: GGUFHeader) -> None:
        self._header = header
        self._files: dict[Path, BinaryIO] = {}
        self._sizes: dict[Path, int] = {}
        for file in {place.file for place in header.tensors.values()}:
            self._files[file] = file.open("rb", buffering=0)
            self._sizes[file] = os.fstat(self._files[file].fileno()).st_size
        ends: dict[Path, int] = {}
        for name, place in sorted(header.tensors.items(), key=lambda item: item[1].offset):
            end = self._check(name, place)
            if place.offset < ends.get(place.file, 0):
                raise ValueError(f"{place.file.name} is damaged: {name} overlaps the tensor before it")
            ends[place.file] = end

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""
        return self._header.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, the slowest-varying dimension first."""
        return self._header.tensors[name].shape[::-1]

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a whole tensor as float32."""
        place, shape = self._header.tensors[name], self.shape(name)
        return self._values(place, 0, math.prod(shape)).reshape(shape)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return some of a tensor's rows as float32.

        Args:
            name: the tensor's name.
            start: index of the first row, counted through all matrices of a stack; of the first value of a vector.
            stop: index behind the last row.
        """
        place, shape = self._header.tensors[name], self.shape(name)
        if len(shape) == 1:
            return self.read(name)[start:stop]
        width, count = shape[-1], math.prod(shape[:-1])
        return self._values(place, start * width, min(stop, count) * width).reshape(-1, width)

    def type_number(self, name: str) -> int:
        """Return ggml's number of a tensor's type, one of ``QUANTIZATIONS``."""
        return self._header.tensors[name].kind

    def raw_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Return some of a matrix's rows as the file has them, as bytes [rows, bytes of a row].

        Args:
            name: the matrix's name.
            start: index of the first row, counted through all matrices of a stack.
            stop: index behind the last row.
        """
        place = self._header.tensors[name]
        rule = QUANTIZATIONS[place.kind]
        size = place.shape[0] // rule.values * rule.size
        data = _read(self._files[place.file], (stop - start) * size, place.offset + start * size)
        return np.frombuffer(data, np.uint8).reshape(-1, size)

    def _values(self, place: TensorPlace, start: int, stop: int) -> NDArray[np.float32]:
        """Return the values from one index of the flattened tensor to another, both multiples of a block."""
        rule = QUANTIZATIONS[place.kind]
        first, last = start // rule.values, stop // rule.values
        size, position = (last - first) * rule.size, place.offset + first * rule.size
        data = _read(self._files[place.file], size, position)
        blocks: NDArray[np.uint8] = np.frombuffer(data, np.uint8).reshape(-1, rule.size)
        return dequantize(blocks, place.kind).reshape(-1)

    def _check(self, name: str, place: TensorPlace) -> int:
        """Check that a tensor can be read, and return the position behind it in its file.

        Raises:
            ValueError: it cannot.
        """
        file, size = place.file.name, self._sizes[place.file]
        if place.kind not in QUANTIZATIONS:
            raise ValueError(f"{file}: {name} has the type {place.kind}, which is not supported")
        rule = QUANTIZATIONS[place.kind]
        if not place.shape or 0 in place.shape:
            raise ValueError(f"{file} is damaged: {name} has the shape {list(place.shape)}")
        if place.shape[0] % rule.values:
            raise ValueError(
                f"{file} is damaged: {name} has rows of {place.shape[0]} values, not a multiple of {rule.name}'s "
                f"{rule.values}"
            )
        if place.offset % self._header.alignment:
            raise ValueError(
                f"{file} is damaged: {name} begins at byte {place.offset}, not at a multiple of "
                f"{self._header.alignment}"
            )
        end = place.offset + math.prod(place.shape) // rule.values * rule.size
        if end > size:
            raise ValueError(f"{file} is truncated: {name} ends at byte {end} of {size}")
        return end


def _read(file: BinaryIO, size: int, position: int) -> bytes:
    """Read bytes at a position, from any thread.

    Raises:
        OSError: the file has become shorter.
    """
    parts = []
    while size:
        part = os.pread(file.fileno(), size, position)  # at most 2 GiB
        if not part:
            raise OSError(f"{Path(file.name).name} was truncated while it was read")
        parts.append(part)
        size, position = size - len(part), position + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def open_gguf(file: Path) -> tuple[GGUFHeader, GgufSource]:
    """Open a GGUF model.

    Args:
        file: the file, or any part of a split one.

    Returns:
        The header, and the tensors of all parts.

    Raises:
        ValueError: the file or one of the parts is damaged, missing, or does not belong to the others.
        OSError: a file cannot be read.
    """
    files = parts(file)
    if missing := [part.name for part in files if not part.exists()]:
        raise ValueError(f"the model is split into {len(files)} files, of which {missing[0]} is missing")
    header = read_header(file)
    if not isinstance(header.metadata.get("general.architecture"), str):
        raise ValueError(f"{file.name} does not say which model it is (general.architecture)")
    return header, GgufSource(header)
