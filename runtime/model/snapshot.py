"""Opens serving snapshots: a model on disk as memory-mapped packed weights, its tokenizer and its properties.

A folder ``<cache>/serving/<name>-<key>`` contains ``weights.bin`` (every tensor at a 64-byte boundary, matrices packed
by ``runtime.model.packing``), ``tokenizer.json`` and ``model.json`` (properties, tensor positions, SHA-256 of the other
two and of itself). Reading imports neither torch nor transformers; ``runtime.loading.snapshot_writer`` writes it.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.model.config import DecoderConfig
from runtime.model.encoder_config import EncoderConfig, stage_tensors
from runtime.model.load_timer import Phases
from runtime.model.packing import MATRIX_KINDS, MIXED_KINDS, MatrixKind, Packed, SnapshotKind, packed_bytes, scale_count
from runtime.model.packing import suits as kind_suits
from runtime.model.tensors import biases, stored_matrices, vectors
from runtime.model.tokenizer import Tokenizer

FORMAT = 10
WEIGHTS, TOKENIZER, MODEL = "weights.bin", "tokenizer.json", "model.json"


class DamagedSnapshot(Exception):
    """The folder does not contain a complete snapshot of this format."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Properties of a snapshot's model.

    Args:
        source: the file's name or the hub id; informative only.
        revision: the hub's commit; None if the model is not from the hub.
        architecture: the model's class in transformers.
        parameters: number of parameters, a tied head counted once.
        kind: number type of the packed matrices; ``gguf`` or ``int4`` if each has its own.
        decoder: the decoder's configuration.
        end_ids: ids of all tokens that end a sequence.
        sampling_defaults: the sampling parameters of the model's generation config, as (name, value).
        encoder: what the model computes from a text; None for a model that generates.
    """

    source: str
    revision: str | None
    architecture: str
    parameters: int
    kind: SnapshotKind
    decoder: DecoderConfig
    end_ids: tuple[int, ...]
    sampling_defaults: tuple[tuple[str, float], ...] = ()
    encoder: EncoderConfig | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Facts:
        """Build the properties from the result of ``dataclasses.asdict``, also after a round trip through JSON text.

        Raises:
            KeyError, TypeError: a field is missing or unknown.
        """
        decoder = DecoderConfig.from_json(data["decoder"])
        defaults = tuple((name, value) for name, value in data["sampling_defaults"])
        encoder = None if data["encoder"] is None else EncoderConfig.from_json(data["encoder"])
        tuples = {"end_ids": tuple(data["end_ids"]), "sampling_defaults": defaults}
        return cls(**{**data, "decoder": decoder, "encoder": encoder, **tuples})


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a tensor in ``weights.bin``.

    Args:
        shape: the shape before packing.
        kind: number type of a packed matrix; None for a tensor that is float32 and not packed.
        offset: position in bytes.
        size: size in bytes, without scales.
        scales: position of an int8 matrix's scales in bytes; None for other tensors.
    """

    shape: tuple[int, ...]
    kind: MatrixKind | None
    offset: int
    size: int
    scales: int | None

    @property
    def matrix(self) -> bool:
        """Whether the tensor is a packed matrix."""
        return self.kind is not None


class Snapshot:
    """An open snapshot. Its arrays are read-only views of the mapped file, which stays mapped while any of them exists.

    Args:
        facts: the model's properties.
        tokenizer: the model's tokenizer.
        buffer: the content of ``weights.bin``.
        places: the tensors' positions in ``buffer``, by name.
        digest: SHA-256 of the whole snapshot.
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
        """Size of ``weights.bin`` in bytes."""
        return self._bytes.size

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def is_matrix(self, name: str) -> bool:
        """Return whether a tensor is a packed matrix."""
        return self._places[name].matrix

    def matrix_kind(self, name: str) -> MatrixKind:
        """Return the number type of a packed matrix.

        Raises:
            KeyError: there is no tensor of that name, or it is not packed.
        """
        kind = self._places[name].kind
        if kind is None:
            raise KeyError(name)
        return kind

    @property
    def weight_types(self) -> tuple[str, ...]:
        """Number types of the packed matrices, those with the most bytes first."""
        sizes: Counter[str] = Counter()
        for place in self._places.values():
            if place.kind is not None:
                sizes[place.kind] += place.size
        return tuple(kind for kind, _ in sizes.most_common())

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape before packing."""
        return self._places[name].shape

    def matrix(self, name: str) -> Packed:
        """Return a packed matrix; its data and its scales begin at 64-byte boundaries.

        Raises:
            KeyError: there is no tensor of that name, or it is not packed.
        """
        place = self._places[name]
        if not place.matrix:
            raise KeyError(name)
        scales = None
        if place.scales is not None:
            scales = self._slice(place.scales, 4 * scale_count(*place.shape)).view(np.float32)
        return Packed(self._slice(place.offset, place.size), scales)

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return a tensor that is not packed, float32, in its shape.

        Raises:
            KeyError: there is no tensor of that name, or it is a matrix.
        """
        place = self._places[name]
        if place.matrix:
            raise KeyError(name)
        return self._slice(place.offset, place.size).view(np.float32).reshape(place.shape)

    def _slice(self, offset: int, size: int) -> NDArray[np.uint8]:
        return self._bytes[offset : offset + size]


def folder_of(cache: Path, name: str, identity: str, kind: SnapshotKind) -> Path:
    """Return the folder of a model's snapshot; its name has a hash of everything that the snapshot depends on.

    Args:
        cache: the cache folder.
        name: the readable part of the folder's name.
        identity: the source's present identity, from ``runtime.loading.model_files``.
        kind: number type of the packed matrices.
    """
    key = hashlib.sha256(f"{FORMAT}|{identity}|{kind}".encode()).hexdigest()[:16]
    return cache / "serving" / f"{name}-{key}"


def open_snapshot(folder: Path, phases: Phases | None = None, tokenizer: Tokenizer | None = None) -> Snapshot:
    """Map a snapshot and verify it completely; the weights are hashed while the tokenizer is built.

    Args:
        folder: the snapshot's folder, from ``folder_of``.
        phases: receives the times of the phases.
        tokenizer: the tokenizer that was just written to the snapshot; None to read it, which takes a second or more
            with a large vocabulary.

    Raises:
        FileNotFoundError: there is no snapshot.
        DamagedSnapshot: the snapshot is damaged or of another format, and must be made again.
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
            if tokenizer is None:
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
    """Check that the snapshot contains exactly the tensors that the decoder reads, in the expected shapes.

    The engine uses these positions and shapes as addresses without further checks.

    Raises:
        DamagedSnapshot: a tensor is missing, superfluous, of another shape or out of bounds.
    """
    packed = stored_matrices(facts.decoder, in_parts=facts.kind in MIXED_KINDS)
    plain, optional = vectors(facts.decoder), biases(facts.decoder)
    if facts.encoder is not None:
        plain |= stage_tensors(facts.encoder)
    if wrong := (packed | plain).keys() - places.keys() or places.keys() - (packed | plain | optional).keys():
        raise DamagedSnapshot(f"{min(wrong)} is missing or of no use to the model")
    for name, place in places.items():
        matrix, kind = name in packed, place.kind
        shape = packed[name] if matrix else (plain | optional)[name]
        allowed = facts.kind in MIXED_KINDS or kind == facts.kind
        right = kind is None or (kind in MATRIX_KINDS and allowed and kind_suits(kind, shape[1]))
        if matrix and not right:
            raise DamagedSnapshot(f"{name} is of the type {kind}")
        need = packed_bytes(shape[0], shape[1], kind) if matrix and kind else 4 * math.prod(shape)
        spans = [(place.offset, need)]
        if matrix and kind == "int8":
            spans.append((-1 if place.scales is None else place.scales, 4 * scale_count(*shape)))
        if (place.shape, place.matrix, place.size) != (shape, matrix, need) or not all(
            0 <= start <= size - length and start % 4 == 0 for start, length in spans
        ):
            raise DamagedSnapshot(f"{name} is not of the model's shape {list(shape)}")
    decoder = facts.decoder
    for layer in decoder.layers:
        if layer.rotation is not None and not 0 <= layer.rotation < len(decoder.rotations):
            raise DamagedSnapshot(f"a layer refers to rotation {layer.rotation} of {len(decoder.rotations)}")
    if wide := [r for r in decoder.rotations if not 0 < 2 * len(r.frequencies) <= decoder.head_dim]:
        raise DamagedSnapshot(f"{len(wide[0].frequencies)} rotary frequencies for heads of width {decoder.head_dim}")
    if any(len(r.long_frequencies) != (len(r.frequencies) if r.short_context else 0) for r in decoder.rotations):
        raise DamagedSnapshot("rotary frequencies of long texts do not match the others")
    if len(decoder.alibi_slopes) not in (0, decoder.heads):
        raise DamagedSnapshot(f"{len(decoder.alibi_slopes)} ALiBi slopes for {decoder.heads} heads")


def _map(file: Path, size: int) -> mmap.mmap:
    """Map ``weights.bin`` for reading, after checking its size in bytes."""
    with file.open("rb") as opened:
        if os.fstat(opened.fileno()).st_size != size:
            raise DamagedSnapshot("weights.bin has another size")
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


def _checked_model(document: Any) -> Any:
    """Return the content of ``model.json``, after checking its digest and format."""
    if document["sha256"] != digest_of(document["content"]):
        raise DamagedSnapshot("model.json has changed")
    if document["content"]["format"] != FORMAT:
        raise DamagedSnapshot("another format")
    return document["content"]


def digest_of(content: Any) -> str:
    """Return the SHA-256 of plain data; a round trip through JSON text does not change it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class _Digest:
    """Computes a buffer's SHA-256 on a background thread; hashing releases the GIL."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self._hash = hashlib.sha256()
        self._thread = threading.Thread(target=self._hash.update, args=(buffer,), name="snapshot-digest")
        self._thread.start()

    def result(self) -> str:
        """Wait for the digest and return it in hexadecimal."""
        self._thread.join()
        return self._hash.hexdigest()
