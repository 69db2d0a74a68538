"""Reads the header of a GGUF file: its metadata and the positions of its tensors. Imports no torch or transformers.

The layout is specified in ``docs/gguf.md`` in ggml's repository; versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.model.gguf_split import parts
from runtime.model.size_limits import check_sizes

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
_MAX_DIMENSIONS = 4
_SHOWN = 100  # characters of a wrong value in an error message
_MIN_ENTRY = {"key": 13, "tensor": 24}  # bytes of the shortest possible entry, which bound the counts
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
        tensors: the tensors' positions by name. Whether they lie within their files is not checked here, so that a
            header can be read without the rest.
        alignment: the tensors' positions are multiples of this number of bytes.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorPlace]
    alignment: int = _ALIGNMENT

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

    def rows(self, name: str) -> int:
        """Return the number of a matrix's rows, of which a single one is stored as a vector."""
        shape = self.tensors[name].shape
        return shape[-1] if len(shape) > 1 else 1

    def vector(self, name: str) -> NDArray[np.float32] | None:
        """Read a tensor that is stored as F32 or F16, flattened; None if the file has no tensor of that name.

        Raises:
            ValueError: the tensor has another type, or lies beyond the end of the file.
        """
        place = self.tensors.get(name)
        if place is None:
            return None
        if place.kind not in _FLOATS:
            raise ValueError(f"{place.file.name}: {name} is quantized")
        number = _FLOATS[place.kind]
        count = math.prod(place.shape)
        if place.offset + count * number.itemsize > place.file.stat().st_size:
            raise ValueError(f"{place.file.name} is truncated: {name} lies beyond the end of the file")
        return np.fromfile(place.file, number, count, offset=place.offset).astype(np.float32)


def read_header(file: Path) -> GGUFHeader:
    """Read a GGUF file's header; for a split file, the first part's metadata and the tensors of all parts that exist.

    Args:
        file: the file, or any part of a split one.

    Raises:
        ValueError: it is not a GGUF file, is truncated or damaged, or its parts do not belong together; the message
            names the file and the field.
        OSError: it cannot be read.
    """
    files = parts(file)
    # A missing part is reported when the weights are loaded.
    headers = {number: _read(part) for number, part in enumerate(files) if number == 0 or part.exists()}
    first = headers[0]
    count = first.metadata.get("split.count", 0)
    if len(files) == 1:
        if count not in (0, 1):
            raise ValueError(f"{file.name} is one of {count} parts, but not named NAME-00001-of-0000N.gguf")
        return first
    for number, header in headers.items():
        if (header.metadata.get("split.no"), header.metadata.get("split.count")) != (number, len(files)):
            raise ValueError(f"{files[number].name} is not part {number + 1} of {len(files)}")
    total, expected = sum(len(header.tensors) for header in headers.values()), first.metadata.get("split.tensors.count")
    if len(headers) == len(files) and expected != total:
        raise ValueError(f"the {len(files)} parts hold {total} tensors, not {expected}")
    tensors: dict[str, TensorPlace] = {}
    for number, header in headers.items():
        if twice := tensors.keys() & header.tensors.keys():
            raise ValueError(f"{files[number].name} is damaged: another part has a tensor {min(twice)}, too")
        tensors |= header.tensors
    return GGUFHeader(first.metadata, tensors, first.alignment)


def _read(file: Path) -> GGUFHeader:
    """Read the header of one file, which may be a part of a split one."""
    if file.stat().st_size < len(_MAGIC):
        raise ValueError(f"{file.name} is not a GGUF file")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[: len(_MAGIC)] != _MAGIC:
            raise ValueError(f"{file.name} is not a GGUF file")
        reader = _Reader(content)
        try:
            return _read_content(file, reader)
        except struct.error as error:
            raise ValueError(f"{file.name} is a damaged GGUF file: it ends within {reader.field}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{file.name} is a damaged GGUF file: a text in {reader.field} is not UTF-8") from error
        except _DamagedError as error:
            raise ValueError(f"{file.name} is a damaged GGUF file: in {reader.field}, {error}") from error


def _read_content(file: Path, reader: _Reader) -> GGUFHeader:
    """Read a file's header from behind the magic number."""
    reader.position = len(_MAGIC)
    if (version := reader.scalar(4)) not in _VERSIONS:
        raise ValueError(f"{file.name} is a GGUF file of version {version}, or of another byte order")
    tensor_count, key_count = reader.count("tensor"), reader.count("key")
    metadata: dict[str, Any] = {}
    for number in range(key_count):
        reader.field = f"key {number + 1} of {key_count}"
        key = reader.text()
        if key in metadata:
            raise _DamagedError(f"{key!r} occurs a second time")
        reader.field = repr(key)
        metadata[key] = reader.value(reader.scalar(4))
    places: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for number in range(tensor_count):
        reader.field = f"tensor {number + 1} of {tensor_count}"
        name = reader.text()
        if name in places:
            raise _DamagedError(f"{name!r} occurs a second time")
        reader.field = repr(name)
        if (dimensions := reader.scalar(4)) > _MAX_DIMENSIONS:
            raise _DamagedError(f"{dimensions} dimensions are more than {_MAX_DIMENSIONS}")
        shape = tuple(reader.scalar(10) for _ in range(dimensions))
        places[name] = shape, reader.scalar(4), reader.scalar(10)
    reader.field = "general.alignment"
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise _DamagedError(f"{str(alignment)[:_SHOWN]!r} is not a power of two")
    start = -(-reader.position // alignment) * alignment
    tensors = {n: TensorPlace(shape, kind, file, start + at) for n, (shape, kind, at) in places.items()}
    reader.field = "the metadata"
    try:
        check_sizes(metadata)
    except ValueError as error:
        raise _DamagedError(str(error)) from error
    return GGUFHeader(metadata, tensors, alignment)


class _DamagedError(Exception):
    """A value is impossible."""


class _Reader:
    """Reads the values of a GGUF file one after the other from a buffer.

    Attributes:
        position: position of the next value in bytes.
        field: what is being read, for error messages.
    """

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._size = len(content)
        self.position = 0
        self.field = "the counts of tensors and keys"

    def scalar(self, kind: int) -> Any:
        """Read a number or boolean of a GGUF type."""
        layout = _SCALARS[kind]
        (value,) = layout.unpack_from(self._content, self.position)
        self.position += layout.size
        return value

    def count(self, entry: str) -> int:
        """Read how many entries of a kind follow."""
        value: int = self.scalar(10)
        if value > self._size // _MIN_ENTRY[entry]:
            raise _DamagedError(f"{value} {entry}s are more than a file of {self._size} bytes can hold")
        return value

    def text(self) -> str:
        """Read a string."""
        return self._take(self.scalar(10)).decode()

    def value(self, kind: int) -> Any:
        """Read a value of any GGUF type: a scalar, a string, or an array of either."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise _DamagedError(f"there is a value of the unknown type {kind}")
            return self.scalar(kind)
        kind, count = self.scalar(4), self.scalar(10)
        if kind == _STRING:
            return self._texts(count)
        if kind not in _SCALARS:
            raise _DamagedError(f"there is an array of the unsupported type {kind}")
        layout = np.dtype(_SCALARS[kind].format)
        return np.frombuffer(self._take(count * layout.itemsize), layout)

    def _texts(self, count: int) -> list[str]:
        """Read an array of strings. Vocabularies have hundreds of thousands, so this loop is kept tight."""
        if count > (self._size - self.position) // 8:
            raise _DamagedError(f"{count} texts are more than the rest of the file can hold")
        content, position, size_of = self._content, self.position, _SCALARS[10].unpack_from
        texts = []
        for _ in range(count):
            start = position + 8
            position = start + size_of(content, position)[0]
            texts.append(content[start:position].decode())
        if position > self._size:
            raise _DamagedError("the file ends within it")
        self.position = position
        return texts

    def _take(self, size: int) -> bytes:
        start, end = self.position, self.position + size
        if end > self._size:
            raise _DamagedError(f"{size} bytes are more than the rest of the file has")
        self.position = end
        return self._content[start:end]
