"""Making a snapshot: on disk, or in memory where the disk cannot be written to."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.model.packing import WeightKind, pack, packed_bytes, scale_count
from runtime.model.snapshot import FORMAT, MODEL, TOKENIZER, WEIGHTS, Facts, Place, Snapshot, digest_of
from runtime.model.tokenizer import Tokenizer

_STALE_SECONDS = 3600
_ALIGNMENT = 64  # a cache line, and a vector register
_CHUNK_ROWS = 4096  # packed at a time, which bounds what packing holds beside the matrix; whole panels


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor on its way into a snapshot.

    Args:
        name: see ``runtime.loading.convert``.
        shape: a matrix's is [outputs, inputs].
        matrix: packed as the snapshot's kind says; otherwise kept as float32.
        read: gives the float32 values; called when they are written, so that few are in memory at a time.
    """

    name: str
    shape: tuple[int, ...]
    matrix: bool
    read: Callable[[], NDArray[np.float32]]


def save(
    folder: Path,
    facts: Facts,
    tokenizer: Tokenizer,
    weights: Sequence[Weight],
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Write a snapshot beside its place and rename it, so that a reader never sees half of it, whoever else writes.

    Args:
        folder: from ``folder_of``.
        facts: of the model.
        tokenizer: the model's.
        weights: all tensors, in the order in which they are read when serving.
        progress: told the share that is written.

    Raises:
        OSError: the disk is read-only or full; nothing is left behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}-*"):  # by a process that was killed
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        places, size = _lay_out(weights, facts.kind)
        with (partial / WEIGHTS).open("wb") as file:
            digest = _fill(file, weights, places, facts.kind, progress)
        text = tokenizer.to_json().encode()
        (partial / TOKENIZER).write_bytes(text)
        content = _content(facts, tokenizer, text, places, size, digest)
        (partial / MODEL).write_text(json.dumps({"sha256": digest_of(content), "content": content}, indent=1) + "\n")
        try:
            os.rename(partial, folder)
        except OSError:
            if not (folder / MODEL).is_file():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def hold(facts: Facts, tokenizer: Tokenizer, weights: Sequence[Weight]) -> Snapshot:
    """A snapshot in this process's memory only. Arguments as of ``save``."""
    places, size = _lay_out(weights, facts.kind)
    buffer = mmap.mmap(-1, size)
    digest = _fill(buffer, weights, places, facts.kind, lambda share: None)
    content = _content(facts, tokenizer, tokenizer.to_json().encode(), places, size, digest)
    return Snapshot(facts, tokenizer, buffer, places, digest_of(content))


def _content(
    facts: Facts, tokenizer: Tokenizer, text: bytes, places: Mapping[str, Place], size: int, digest: str
) -> dict[str, Any]:
    """All that ``model.json`` says: with its own digest, of the whole snapshot."""
    return {
        "format": FORMAT,
        "facts": asdict(facts),
        "chat_template": tokenizer.chat_template,
        "special_tokens": dict(tokenizer.special_tokens),
        "size": size,
        "tensors": {name: asdict(place) for name, place in places.items()},
        "sha256": {WEIGHTS: digest, TOKENIZER: hashlib.sha256(text).hexdigest()},
    }


class _Sink(Protocol):
    def write(self, data: Any, /) -> int: ...


def _lay_out(weights: Sequence[Weight], kind: WeightKind) -> tuple[dict[str, Place], int]:
    """Each tensor's place, and the size of the whole."""
    places, end = {}, 0

    def take(size: int) -> int:
        nonlocal end
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = offset + size
        return offset

    for weight in weights:
        if weight.matrix:
            rows, columns = weight.shape
            size = packed_bytes(rows, columns, kind)
            offset = take(size)
            scales = take(4 * scale_count(rows, columns)) if kind == "int8" else None
        else:
            size = 4 * int(np.prod(weight.shape))
            offset, scales = take(size), None
        places[weight.name] = Place(weight.shape, weight.matrix, offset, size, scales)
    return places, end


def _fill(
    sink: _Sink,
    weights: Sequence[Weight],
    places: Mapping[str, Place],
    kind: WeightKind,
    progress: Callable[[float], None],
) -> str:
    """Write every tensor at its place; the SHA-256 of all that was written."""
    digest, at = hashlib.sha256(), 0

    def put(array: NDArray[Any]) -> None:
        nonlocal at
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        sink.write(data)
        digest.update(data)
        at += len(data)

    def go_to(offset: int) -> None:
        put(np.zeros(offset - at, np.uint8))

    for number, weight in enumerate(weights, 1):
        place, values = places[weight.name], weight.read()
        go_to(place.offset)
        if place.matrix:
            parts = [pack(values[i : i + _CHUNK_ROWS], kind) for i in range(0, len(values), _CHUNK_ROWS)]
            for part in parts:
                put(part.data)
            if place.scales is not None:
                go_to(place.scales)
                for part in parts:
                    put(part.scales)  # type: ignore[arg-type]
        else:
            put(values.astype(np.float32, copy=False))
        progress(number / len(weights))
    return digest.hexdigest()
