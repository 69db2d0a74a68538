"""Reads the header of a GGUF file: its metadata and the positions of its tensors. Imports no torch or transformers.

The layout is specified in ``docs/gguf.md`` in ggml's repository; versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.model.gguf_split import parts

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, struct.Struct] = {
    number: struct.Struct(f"<{code}")
    for number, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_ALIGNMENT = 32  # bytes, unless general.alignment says otherwise
_FLOATS: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}  # ggml's types F32 and F16


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """The shape, type and position of a tensor in a GGUF file.

    Args:
        shape: the dimensions in the file's order, the fastest-varying one first.
        kind: ggml's number for the tensor's type.
        file: the file, or the part of a split file, that contains the tensor.
        offset: position of the tensor in that file, in bytes.
    """

    shape: tuple[int, ...]
    kind: int
    file: Path
    offset: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """The header of a GGUF file.

    Args:
        metadata: values by key; arrays of strings are lists, arrays of numbers are NumPy arrays.
        tensors: the tensors' positions by name.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorPlace]

    @property
    def architecture(self) -> str:
        """The model's architecture, such as ``llama``, which is the prefix of the keys that describe the model.

        Raises:
            ValueError: the file has no ``general.architecture``.
        """
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise ValueError("a GGUF file without general.architecture")
        return name

    def of_model(self, key: str, default: Any = None) -> Any:
        """Return the metadata value of ``{architecture}.{key}``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def vector(self, name: str) -> NDArray[np.float32] | None:
        """Read a tensor that is stored as F32 or F16, flattened; None if the file has no tensor of that name.

        Raises:
            ValueError: the tensor has another type, or lies beyond the end of the file.
        """
        place = self.tensors.get(name)
        if place is None:
            return None
        if place.kind not in _FLOATS:
            raise ValueError(f"{name} is quantized")
        count = int(np.prod(place.shape, dtype=np.int64))
        values: NDArray[Any] = np.fromfile(place.file, _FLOATS[place.kind], count, offset=place.offset)
        if len(values) < count:
            raise ValueError(f"{name} lies beyond the end of the file")
        return values.astype(np.float32)


def read_header(file: Path) -> GGUFHeader:
    """Read a GGUF file's header; for a split file, the first part's metadata and the tensors of all parts that exist.

    Args:
        file: the file, or any part of a split one.

    Raises:
        ValueError: it is not a GGUF file, or is truncated.
        OSError: it cannot be read.
    """
    first, *others = parts(file)
    metadata, tensors = _read(first)
    for other in others:
        if other.exists():  # a missing part is reported when the weights are loaded
            tensors |= _read(other)[1]
    return GGUFHeader(metadata, tensors)


def _read(file: Path) -> tuple[dict[str, Any], dict[str, TensorPlace]]:
    """Read the metadata and the tensors' positions of one file."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        reader = _Reader(content)
        try:
            if content[:4] != _MAGIC:
                raise ValueError("not a GGUF file")
            reader.position = 4
            if (version := reader.scalar(4)) not in _VERSIONS:
                raise ValueError(f"a GGUF file of version {version}, or of another byte order")
            tensor_count, key_count = reader.scalar(10), reader.scalar(10)
            metadata = {}
            for _ in range(key_count):
                key = reader.text()
                metadata[key] = reader.value(reader.scalar(4))
            places = []
            for _ in range(tensor_count):
                name = reader.text()
                shape = tuple(reader.scalar(10) for _ in range(reader.scalar(4)))
                places.append((name, shape, reader.scalar(4), reader.scalar(10)))
        except (struct.error, UnicodeDecodeError) as error:
            raise ValueError(f"a damaged GGUF file: {error}") from error
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        start = -(-reader.position // alignment) * alignment
    return metadata, {n: TensorPlace(shape, kind, file, start + at) for n, shape, kind, at in places}


class _Reader:
    """Reads the values of a GGUF file one after the other from a buffer."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.position = 0

    def scalar(self, kind: int) -> Any:
        """Read a number or boolean of a GGUF type."""
        layout = _SCALARS[kind]
        (value,) = layout.unpack_from(self._content, self.position)
        self.position += layout.size
        return value

    def text(self) -> str:
        """Read a string."""
        size = self.scalar(10)
        return self._take(size).decode()

    def value(self, kind: int) -> Any:
        """Read a value of any GGUF type: a scalar, a string, or an array of either."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise ValueError(f"a GGUF file with a value of type {kind}")
            return self.scalar(kind)
        kind, count = self.scalar(4), self.scalar(10)
        if kind == _STRING:
            return self._texts(count)
        if kind not in _SCALARS:
            raise ValueError(f"a GGUF file with an array of type {kind}")
        layout = np.dtype(_SCALARS[kind].format)
        return np.frombuffer(self._take(count * layout.itemsize), layout)

    def _texts(self, count: int) -> list[str]:
        """Read an array of strings. Vocabularies have hundreds of thousands, so this loop is kept tight."""
        content, position, size_of = self._content, self.position, _SCALARS[10].unpack_from
        texts = []
        for _ in range(count):
            start = position + 8
            position = start + size_of(content, position)[0]
            texts.append(content[start:position].decode())
        if position > len(content):
            raise ValueError("a damaged GGUF file: it is cut short")
        self.position = position
        return texts

    def _take(self, size: int) -> bytes:
        start, self.position = self.position, self.position + size
        if self.position > len(self._content):
            raise ValueError("a damaged GGUF file: it is cut short")
        return self._content[start : self.position]
