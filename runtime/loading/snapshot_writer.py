"""Writes a serving snapshot to disk, or builds it in memory if the disk cannot be written to."""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.loading.four_bits import FOUR_BIT_KINDS, pack_four_bits
from runtime.model.packing import (
    MIXED_KINDS,
    PANEL_ROWS,
    MatrixKind,
    Packed,
    SnapshotKind,
    pack,
    packed_bytes,
    scale_count,
)
from runtime.model.snapshot import Facts, Place, Snapshot
from runtime.model.snapshot_folder import FORMAT, MODEL, TOKENIZER, WEIGHTS, digest_of
from runtime.model.tokenizer import Tokenizer

_STALE_SECONDS = 3600
_ALIGNMENT = 64  # a cache line, and a vector register
_CHUNK_VALUES = 1 << 18  # packed at a time, so that intermediate results stay in the processor's cache
_WORKERS = 2  # matrices are read and packed in threads, while others are hashed and written
_AHEAD = 16  # chunks, and so a few megabytes, that are packed but not written yet


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor to be written to a snapshot.

    Args:
        name: the tensor's name, from the table of ``runtime.loading.convert``.
        shape: the tensor's shape; [outputs, inputs] for a matrix.
        matrix: whether the tensor is packed; otherwise it is stored as float32.
        read: returns the float32 values; called when they are written, so that few are in memory at a time.
        read_rows: returns some rows of a matrix, from the index of the first to that behind the last; None if only the
            whole matrix can be read.
        kind: number type of a packed matrix; None for that of the snapshot.
        pack_rows: returns some rows of a matrix as packed bytes of ``kind``, with the arguments of ``read_rows``, which
            are multiples of ``PANEL_ROWS`` or the last row; None to pack what ``read_rows`` or ``read`` returns.
    """

    name: str
    shape: tuple[int, ...]
    matrix: bool
    read: Callable[[], NDArray[np.float32]]
    read_rows: Callable[[int, int], NDArray[np.float32]] | None = None
    kind: MatrixKind | None = None
    pack_rows: Callable[[int, int], NDArray[np.uint8]] | None = None

    def kind_in(self, snapshot: SnapshotKind) -> MatrixKind | None:
        """Return the number type of a packed matrix in a snapshot; None for a tensor that is not packed.

        Raises:
            ValueError: the snapshot's matrices have types of their own, and this one has none.
        """
        if not self.matrix:
            return None
        if self.kind is None and snapshot in MIXED_KINDS:
            raise ValueError(f"{self.name} has no type of its own")
        return self.kind or snapshot  # type: ignore[return-value]


def save(
    folder: Path,
    facts: Facts,
    tokenizer: Tokenizer,
    weights: Sequence[Weight],
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Write a snapshot to a temporary folder and rename it, so that no reader sees a part, even with several writers.

    Args:
        folder: the snapshot's folder, from ``folder_of``.
        facts: the model's properties.
        tokenizer: the model's tokenizer.
        weights: all tensors, in the order in which the engine reads them.
        progress: called with the fraction that is written (0 to 1).

    Raises:
        OSError: the disk is read-only or full; no partial files remain.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}-*"):  # left by a process that was killed
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        places, size = lay_out(weights, facts.kind)
        with (partial / WEIGHTS).open("wb") as file:
            digest = _fill(file, weights, places, facts.kind, progress)
        text = tokenizer.to_json().encode()
        (partial / TOKENIZER).write_bytes(text)
        content = _content(facts, tokenizer, text, places, size, digest)
        (partial / MODEL).write_text(json.dumps({"sha256": digest_of(content), "content": content}, indent=1) + "\n")
        try:
            os.rename(partial, folder)
        except OSError:
            if not (folder / MODEL).is_file():  # otherwise another process has written the same content
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def hold(facts: Facts, tokenizer: Tokenizer, weights: Sequence[Weight]) -> Snapshot:
    """Build a snapshot in this process's memory only. Arguments as for ``save``."""
    places, size = lay_out(weights, facts.kind)
    buffer = mmap.mmap(-1, size)
    digest = _fill(buffer, weights, places, facts.kind, lambda share: None)
    content = _content(facts, tokenizer, tokenizer.to_json().encode(), places, size, digest)
    return Snapshot(facts, tokenizer, buffer, places, digest_of(content))


def _content(
    facts: Facts, tokenizer: Tokenizer, text: bytes, places: Mapping[str, Place], size: int, digest: str
) -> dict[str, Any]:
    """Return the content of ``model.json``, whose digest identifies the whole snapshot.

    Args:
        facts: the model's properties.
        tokenizer: the model's tokenizer.
        text: the content of ``tokenizer.json``.
        places: the tensors' positions by name.
        size: size of ``weights.bin`` in bytes.
        digest: SHA-256 of ``weights.bin``.
    """
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
    """An object to which bytes can be written."""

    def write(self, data: Any, /) -> int: ...


def lay_out(weights: Sequence[Weight], kind: SnapshotKind) -> tuple[dict[str, Place], int]:
    """Return each tensor's position in ``weights.bin``, and the file's size in bytes. Arguments as for ``save``."""
    places, end = {}, 0

    def take(size: int) -> int:
        nonlocal end
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = offset + size
        return offset

    for weight in weights:
        stored = weight.kind_in(kind)
        if stored is not None:
            rows, columns = weight.shape
            size = packed_bytes(rows, columns, stored)
            offset = take(size)
            scales = take(4 * scale_count(rows, columns)) if stored == "int8" else None
        else:
            size = 4 * int(np.prod(weight.shape))
            offset, scales = take(size), None
        places[weight.name] = Place(weight.shape, stored, offset, size, scales)
    return places, end


def _fill(
    sink: _Sink,
    weights: Sequence[Weight],
    places: Mapping[str, Place],
    kind: SnapshotKind,
    progress: Callable[[float], None],
) -> str:
    """Write every tensor at its position, and return the SHA-256 of the written bytes."""
    digest, at = hashlib.sha256(), 0

    def put(array: NDArray[Any]) -> None:
        nonlocal at
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        sink.write(data)
        digest.update(data)
        at += len(data)

    def go_to(offset: int) -> None:
        put(np.zeros(offset - at, np.uint8))

    packed = _packed(weights, kind)
    for number, weight in enumerate(weights, 1):
        place = places[weight.name]
        go_to(place.offset)
        if place.matrix:
            scales = []
            while at < place.offset + place.size:
                for part in next(packed):
                    put(part.data)
                    scales.append(part.scales)
            if place.scales is not None:
                go_to(place.scales)
                for part_scales in scales:
                    put(part_scales)  # type: ignore[arg-type]
        else:
            put(weight.read().astype(np.float32, copy=False))
        progress(number / len(weights))
    return digest.hexdigest()


def _packed(weights: Sequence[Weight], snapshot: SnapshotKind) -> Iterator[list[Packed]]:
    """Read and pack the matrices in threads, and yield their parts in order."""

    def tasks() -> Iterator[Callable[[], list[Packed]]]:
        for weight in weights:
            kind = weight.kind_in(snapshot)
            if kind is None:
                continue
            if weight.read_rows is None and weight.pack_rows is None:
                yield functools.partial(_pack_whole, weight, kind)
                continue
            step = _chunk_rows(weight)
            for start in range(0, weight.shape[0], step):
                yield functools.partial(_pack_rows, weight, start, min(start + step, weight.shape[0]), kind)

    with ThreadPoolExecutor(_WORKERS, "pack") as pool:
        waiting: deque[Future[list[Packed]]] = deque()
        for task in tasks():
            waiting.append(pool.submit(task))
            if len(waiting) == _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _chunk_rows(weight: Weight) -> int:
    """Return how many rows of a matrix are packed at a time, a multiple of a panel's."""
    return max(1, _CHUNK_VALUES // weight.shape[1] // PANEL_ROWS) * PANEL_ROWS


def _pack_whole(weight: Weight, kind: MatrixKind) -> list[Packed]:
    values, step = weight.read(), _chunk_rows(weight)
    return [_pack_values(values[i : i + step], kind) for i in range(0, len(values), step)]


def _pack_rows(weight: Weight, start: int, stop: int, kind: MatrixKind) -> list[Packed]:
    if weight.pack_rows is not None:
        return [Packed(weight.pack_rows(start, stop), None)]
    if weight.read_rows is None:
        raise ValueError(f"{weight.name} cannot be read in pieces")
    return [_pack_values(weight.read_rows(start, stop), kind)]


def _pack_values(values: NDArray[np.float32], kind: MatrixKind) -> Packed:
    return Packed(pack_four_bits(values, kind), None) if kind in FOUR_BIT_KINDS else pack(values, kind)
