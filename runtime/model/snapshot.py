"""The serving form of a model on disk: packed weights to map, the tokenizer, and what must be known of both.

A folder ``<cache>/serving/<name>-<key>`` holds ``weights.bin`` (every tensor at a 64-byte boundary, matrices packed as
``runtime.model.packing`` says), ``tokenizer.json`` and ``model.json`` (facts, the tensors' places, SHA-256 of the other
two and of itself). Reading it imports neither torch nor transformers; ``runtime.loading.snapshot_writer`` makes it.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.model.config import DecoderConfig
from runtime.model.load_timer import Phases
from runtime.model.packing import Packed, WeightKind, packed_bytes, scale_count
from runtime.model.tensors import matrices, vectors
from runtime.model.tokenizer import Tokenizer

FORMAT = 4
WEIGHTS, TOKENIZER, MODEL = "weights.bin", "tokenizer.json", "model.json"


class DamagedSnapshot(Exception):
    """What lies there is not a whole snapshot of this format."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the model beside its weights and its tokenizer.

    Args:
        source: the file's name or the hub id, for people who look into the folder.
        revision: the hub's commit.
        architecture: the model class in transformers.
        parameters: how many there are, a tied head counted once.
        kind: how matrices are stored.
        decoder: its shape.
        end_ids: every token id that ends a text.
    """

    source: str
    revision: str | None
    architecture: str
    parameters: int
    kind: WeightKind
    decoder: DecoderConfig
    end_ids: tuple[int, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Facts:
        """What ``dataclasses.asdict`` made, also after a way through JSON text.

        Raises:
            KeyError, TypeError: a field is missing or unknown.
        """
        decoder = DecoderConfig.from_json(data["decoder"])
        return cls(**{**data, "decoder": decoder, "end_ids": tuple(data["end_ids"])})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in ``weights.bin``, in bytes. ``scales`` is where an int8 matrix's scales begin."""

    shape: tuple[int, ...]
    matrix: bool
    offset: int
    size: int
    scales: int | None


class Snapshot:
    """An open snapshot. Its arrays are read-only views of the mapped file, valid as long as anyone holds one.

    Args:
        facts: of the model.
        tokenizer: the model's.
        buffer: the content of ``weights.bin``.
        places: of the tensors in it.
        digest: SHA-256 over all of it.
    """

    def __init__(
        self, facts: Facts, tokenizer: Tokenizer, buffer: mmap.mmap, places: Mapping[str, Place], digest: str
    ) -> None:
        self.facts = facts
        self.tokenizer = tokenizer
        self.digest = digest
        self._bytes: NDArray[np.uint8] = np.frombuffer(buffer, np.uint8)
        self._bytes.flags.writeable = False
        self._places = places

    @property
    def nbytes(self) -> int:
        """Size of all weights."""
        return self._bytes.size

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def is_matrix(self, name: str) -> bool:
        """Whether a tensor is packed."""
        return self._places[name].matrix

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape before packing."""
        return self._places[name].shape

    def matrix(self, name: str) -> Packed:
        """A packed matrix, at a 64-byte boundary as are its scales.

        Raises:
            KeyError: there is no tensor of that name, or it is a vector.
        """
        place = self._places[name]
        if not place.matrix:
            raise KeyError(name)
        scales = None
        if place.scales is not None:
            scales = self._slice(place.scales, 4 * scale_count(*place.shape)).view(np.float32)
        return Packed(self._slice(place.offset, place.size), scales)

    def vector(self, name: str) -> NDArray[np.float32]:
        """A tensor that is not packed, in its shape.

        Raises:
            KeyError: there is no tensor of that name, or it is a matrix.
        """
        place = self._places[name]
        if place.matrix:
            raise KeyError(name)
        return self._slice(place.offset, place.size).view(np.float32).reshape(place.shape)

    def _slice(self, offset: int, size: int) -> NDArray[np.uint8]:
        return self._bytes[offset : offset + size]


def folder_of(cache: Path, name: str, identity: str, kind: WeightKind) -> Path:
    """Where a model's snapshot belongs, named by all it depends on.

    Args:
        cache: the cache folder.
        name: for people.
        identity: of the source as it is now, see ``runtime.loading.model_files``.
        kind: how its matrices are stored.
    """
    key = hashlib.sha256(f"{FORMAT}|{identity}|{kind}".encode()).hexdigest()[:16]
    return cache / "serving" / f"{name}-{key}"


def open_snapshot(folder: Path, phases: Phases | None = None) -> Snapshot:
    """Map a snapshot and check that it is whole: every byte of it, while the tokenizer is being built.

    Args:
        folder: from ``folder_of``.
        phases: takes the times.

    Raises:
        FileNotFoundError: there is none.
        DamagedSnapshot: there is one that must be made again.
        OSError: it cannot be read.
    """
    phases = phases or Phases()
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        document = json.loads((folder / MODEL).read_bytes())
        content = _checked_model(document)
        facts = Facts.from_json(content["facts"])
        buffer = _map(folder / WEIGHTS, content["size"])
        digest = _Digest(buffer)
        with phases.phase("tokenizer"):
            text = (folder / TOKENIZER).read_bytes()
            if hashlib.sha256(text).hexdigest() != content["sha256"][TOKENIZER]:
                raise DamagedSnapshot("tokenizer.json has changed")
            tokenizer = Tokenizer.from_json(text.decode(), content["chat_template"], content["special_tokens"])
        places = {name: Place(**{**p, "shape": tuple(p["shape"])}) for name, p in content["tensors"].items()}
        _check_places(facts, places, content["size"])
        with phases.phase("weights"):
            if digest.result() != content["sha256"][WEIGHTS]:
                raise DamagedSnapshot("weights.bin has changed")
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DamagedSnapshot(f"{type(error).__name__}: {error}") from error
    return Snapshot(facts, tokenizer, buffer, places, document["sha256"])


def _check_places(facts: Facts, places: Mapping[str, Place], size: int) -> None:
    """Every tensor that the decoder reads is there, in the shape that it reads, and no other.

    Whoever runs the model takes addresses and shapes from here and looks no further.
    """
    packed, plain = matrices(facts.decoder), vectors(facts.decoder)
    biases = {f"{name}.bias": shape[:1] for name, shape in packed.items()}
    if wrong := (packed | plain).keys() - places.keys() or places.keys() - (packed | plain | biases).keys():
        raise DamagedSnapshot(f"{min(wrong)} is missing or of no use to the model")
    for name, place in places.items():
        matrix, kind = name in packed, facts.kind
        shape = packed[name] if matrix else (plain | biases)[name]
        need = packed_bytes(shape[0], shape[1], kind) if matrix else 4 * math.prod(shape)
        spans = [(place.offset, need)]
        if matrix and kind == "int8":
            spans.append((-1 if place.scales is None else place.scales, 4 * scale_count(*shape)))
        if (place.shape, place.matrix, place.size) != (shape, matrix, need) or not all(
            0 <= start <= size - length and start % 4 == 0 for start, length in spans
        ):
            raise DamagedSnapshot(f"{name} is not of the model's shape {list(shape)}")
    rotations = facts.decoder.head_dim // 2 if facts.decoder.family == "llama" else 0
    if len(facts.decoder.inverse_frequencies) != rotations:
        raise DamagedSnapshot(f"{len(facts.decoder.inverse_frequencies)} rotary frequencies, not {rotations}")


def _map(file: Path, size: int) -> mmap.mmap:
    with file.open("rb") as opened:
        if os.fstat(opened.fileno()).st_size != size:
            raise DamagedSnapshot("weights.bin has another size")
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


def _checked_model(document: Any) -> Any:
    if document["sha256"] != digest_of(document["content"]):
        raise DamagedSnapshot("model.json has changed")
    if document["content"]["format"] != FORMAT:
        raise DamagedSnapshot("another format")
    return document["content"]


def digest_of(content: Any) -> str:
    """SHA-256 of plain data, the same before and after a way through JSON text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class _Digest:
    """A buffer's SHA-256, taken on a thread of its own: hashing frees the interpreter."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self._hash = hashlib.sha256()
        self._thread = threading.Thread(target=self._hash.update, args=(buffer,), name="snapshot-digest")
        self._thread.start()

    def result(self) -> str:
        self._thread.join()
        return self._hash.hexdigest()
