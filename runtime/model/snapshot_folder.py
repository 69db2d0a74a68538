"""Opens the folders of serving snapshots, and checks everything in them before it is used.

A folder ``<cache>/serving/<name>-<key>`` contains ``weights.bin`` (every tensor at a 64-byte boundary, matrices packed
by ``runtime.model.packing``), ``tokenizer.json`` and ``model.json`` (properties, tensor positions, SHA-256 of the other
two and of itself). ``runtime.loading.snapshot_writer`` writes it.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.model.encoder_config import stage_tensors
from runtime.model.load_timer import Phases
from runtime.model.packing import MATRIX_KINDS, MIXED_KINDS, SnapshotKind, packed_bytes, scale_count
from runtime.model.packing import suits as kind_suits
from runtime.model.snapshot import Facts, Place, Snapshot
from runtime.model.tensors import biases, stored_matrices, vectors
from runtime.model.tokenizer import Tokenizer

FORMAT = 11
WEIGHTS, TOKENIZER, MODEL = "weights.bin", "tokenizer.json", "model.json"


class DamagedSnapshot(Exception):
    """The folder does not contain a complete snapshot of this format."""


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
