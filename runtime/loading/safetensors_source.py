"""Reads tensors from safetensors files without copying more than one tensor into memory.

A file is 8 bytes with the length of a JSON header, the header (each tensor's number type, shape and position), and the
tensors' bytes, little-endian and without gaps (the format's description in safetensors' README).
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_HEADER = 100_000_000  # bytes, as in safetensors itself
_NUMBERS: dict[str, Any] = {  # number types that weights may have
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_OTHERS = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "U16": 2,
    "I16": 2,
    "U32": 4,
    "I32": 4,
    "U64": 8,
    "I64": 8,
}  # bytes; old buffers


class DamagedSafetensors(Exception):
    """A file is not a valid safetensors file, or several do not belong together; the message names the file."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor's place in its file."""

    file: int
    number: str
    shape: tuple[int, ...]
    start: int
    size: int


class SafetensorsSource:
    """The tensors of one or several safetensors files, which stay mapped while this object or an array exists.

    Args:
        files: the files; each tensor is in one of them.

    Raises:
        DamagedSafetensors: a file is truncated or otherwise invalid, or two have tensors of the same name.
        OSError: a file cannot be read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._tensors: dict[str, _Tensor] = {}
        self._files: list[mmap.mmap] = []
        for number, path in enumerate(files):
            with path.open("rb") as file:
                size = path.stat().st_size
                if size < 8:
                    raise DamagedSafetensors(f"{path.name} has {size} bytes, too few for a safetensors file")
                self._files.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            for name, tensor in _read_header(path.name, self._files[-1], number).items():
                if name in self._tensors:
                    raise DamagedSafetensors(f"{path.name} and another file both have a tensor {name}")
                self._tensors[name] = tensor

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape.

        Raises:
            DamagedSafetensors: ``read`` cannot read the tensor, because its number type is not one of weights.
        """
        tensor = self._tensors[name]
        if tensor.number not in _NUMBERS:
            raise DamagedSafetensors(f"{name} is stored as {tensor.number}, which is not a number type of weights")
        return tensor.shape

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a whole tensor as float32; a read-only view of the file if it is stored so."""
        shape = self._tensors[name].shape
        return self._values(name, 0, math.prod(shape)).reshape(shape)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return the rows from ``start`` to before ``stop`` of a matrix, or of a stack of matrices, as float32."""
        width = self._tensors[name].shape[-1]
        return self._values(name, start * width, stop * width).reshape(-1, width)

    def integer_shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """Return the shape of a tensor of int32 numbers.

        Raises:
            DamagedSafetensors: it has another type or another number of dimensions.
        """
        tensor = self._tensors[name]
        if tensor.number not in ("I32", "U32") or len(tensor.shape) != dimensions:
            raise DamagedSafetensors(
                f"{name} is stored as {tensor.number} {list(tensor.shape)}, not as int32 in {dimensions} dimensions"
            )
        return tensor.shape

    def integers(self, name: str) -> NDArray[np.int32]:
        """Return a tensor for which ``integer_shape`` has a shape, as a read-only view of the file."""
        tensor = self._tensors[name]
        stored = np.frombuffer(self._files[tensor.file], np.dtype("<i4"), math.prod(tensor.shape), tensor.start)
        return stored.reshape(tensor.shape)

    def _values(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return the values from one index of the flattened tensor to before another."""
        tensor = self._tensors[name]
        number = _NUMBERS[tensor.number]
        position = tensor.start + start * number.itemsize
        stored: NDArray[Any] = np.frombuffer(self._files[tensor.file], number, stop - start, position)
        if tensor.number == "BF16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32, copy=False)


def _read_header(name: str, data: mmap.mmap, file: int) -> dict[str, _Tensor]:
    """Read and check a file's header.

    Args:
        name: the file's name, for error messages.
        data: the file's content, at least 8 bytes.
        file: the file's index.

    Raises:
        DamagedSafetensors: the header is not one, or it does not describe the file's bytes exactly.
    """
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, _MAX_HEADER):
        raise DamagedSafetensors(f"{name} is truncated or not a safetensors file: its header has {length} bytes")
    try:
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        tensors = {key: _place(item, 8 + length, file) for key, item in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedSafetensors(f"{name} has a damaged header: {error}") from error
    end = 8 + length
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start != end:
            raise DamagedSafetensors(f"{name} has a damaged header: {key} begins at byte {tensor.start}, not {end}")
        end += tensor.size
    if end != len(data):
        raise DamagedSafetensors(f"{name} is damaged: it has {len(data)} bytes, and its header describes {end}")
    return tensors


def _place(item: Any, base: int, file: int) -> _Tensor:
    """Read a tensor's entry of a header.

    Args:
        item: the entry.
        base: position of the first tensor's bytes.
        file: the file's index.

    Raises:
        ValueError, KeyError, TypeError: the entry is not valid.
    """
    number, shape, (start, end) = item["dtype"], tuple(item["shape"]), item["data_offsets"]
    if any(type(value) is not int or value < 0 for value in (*shape, start, end)):
        raise ValueError("a shape or a position is not a number")
    width = _NUMBERS[number].itemsize if number in _NUMBERS else _OTHERS.get(number)
    size = end - start
    if width is not None and math.prod(shape) * width != size:
        raise ValueError(f"a tensor of shape {list(shape)} and type {number} has {size} bytes")
    if size < 0:
        raise ValueError("a tensor ends before it begins")
    return _Tensor(file, str(number), shape, base + start, size)
