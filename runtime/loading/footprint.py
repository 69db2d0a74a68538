"""What a model takes of the memory before it is loaded, what all may take together, and each one's part for texts.

Nothing here reads weights: a snapshot's size is known, and another source's is worked out from its files.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.loading.model_files import WEIGHT_FILES
from runtime.model import gguf_split
from runtime.model.config import DecoderConfig, UnsupportedDecoder
from runtime.model.snapshot import MODEL, WEIGHTS

_LEAST_KV = 16 << 20  # keys and values with which a model is still of use
_PROCESS_BYTES = 256 << 20  # Python, the libraries and the requests themselves
_SAFE_SHARE = 0.95  # of a limit whose overstepping ends the process
_BYTES = {"int8": 1.05, "bfloat16": 2.0, "float16": 2.0, "float32": 4.0}  # of a parameter; int8 has scales beside it
_QUANTIZED = re.compile(r"[-_.](?:i?q(\d)|(b?f16)|f32)", re.IGNORECASE)  # as llama.cpp names its files


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one model takes, in bytes.

    Args:
        weights: as they are served.
        texts: keys and values of all rows in full length; None if that is not known.
        pinned: whether the model stays loaded when others need the room.
    """

    weights: int
    texts: int | None = None
    pinned: bool = False


def default_budget(limit: int) -> int:
    """What models may take of a process's memory.

    Args:
        limit: bytes that the process may use.
    """
    return max(limit // 2, int(limit * _SAFE_SHARE) - _PROCESS_BYTES)


def kv_bytes(budget: int, own: Footprint, others: Sequence[Footprint]) -> int:
    """A model's part for keys and values.

    Several models share what their weights leave, evenly, save that what one cannot use goes to the others; none gets
    more than half of it, nor does a model alone. If not all of them fit at once, each counts with those that are
    always there: the pinned ones, and for these, the largest other one that fits beside them.

    Args:
        budget: bytes for all of it.
        own: what the model itself takes.
        others: what the others do.

    Returns:
        Bytes, not more than it could use, and not less than are of use.
    """
    group = [own, *others]
    if not _fit(budget, group):
        group = [own, *(other for other in others if other.pinned)]
        beside = [other for other in others if not other.pinned and _fit(budget, [*group, other])]
        if own.pinned and beside:
            group.append(max(beside, key=lambda other: other.weights))
        if not _fit(budget, group):
            group = [own]
    left = max(0, budget - sum(member.weights for member in group))
    most = left // 2
    level = 0.0  # what each may have who can use so much
    for parts, use in zip(range(len(group), 0, -1), sorted(map(_most, group)), strict=True):
        level = left // parts
        if use > level:
            break
        left -= int(use)
    return int(max(min(level, most, _most(own)), min(_LEAST_KV, _most(own))))


def _most(footprint: Footprint) -> float:
    return math.inf if footprint.texts is None else footprint.texts


def _fit(budget: int, group: Sequence[Footprint]) -> bool:
    return sum(member.weights + min(_LEAST_KV, _most(member)) for member in group) <= budget


def texts_bytes(config: DecoderConfig, rows: int) -> int:
    """Keys and values of so many texts in full length, float32 at most."""
    return rows * config.context_length * 2 * 4 * config.layers * config.kv_heads * config.head_dim


def snapshot_footprint(folder: Path, rows: int) -> Footprint | None:
    """What a model takes whose serving form is on disk; None if it is not there, or not whole.

    Args:
        folder: of the snapshot.
        rows: sequences that run at once.
    """
    try:
        content = json.loads((folder / MODEL).read_bytes())["content"]
        config = DecoderConfig.from_json(content["facts"]["decoder"])
        return Footprint((folder / WEIGHTS).stat().st_size, texts_bytes(config, rows))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def source_footprint(path: Path, dtype: str, reference_dtype: str, rows: int) -> Footprint:
    """About what a model takes, by its source's files.

    Args:
        path: a folder in transformers' layout, or a ``.gguf`` file.
        dtype: the weights' number type in the fast engine.
        reference_dtype: and in the reference engine, which serves what the fast one does not know. What its requests
            take comes and goes with them and is not counted.
        rows: sequences that run at once.

    Raises:
        OSError: the files cannot be read.
    """
    if path.is_file():
        size = sum(part.stat().st_size for part in gguf_split.parts(path))
        return Footprint(int(size * 8 / _gguf_bits(path.name) * _BYTES[dtype]))
    config = _json_of(path / "config.json")
    parameters = _parameters(path, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    try:
        texts = texts_bytes(DecoderConfig.from_transformers(config), rows)
    except UnsupportedDecoder:
        return Footprint(int(parameters * _BYTES[reference_dtype]), 0)
    return Footprint(int(parameters * _BYTES[dtype]), texts)


def _parameters(folder: Path, dtype: str) -> float:
    files = sorted(folder.glob(WEIGHT_FILES[0]))
    if files:
        return sum(map(_safetensors_parameters, files))
    return sum(file.stat().st_size for file in folder.glob(WEIGHT_FILES[1])) / _BYTES.get(dtype, 4.0)


def _safetensors_parameters(file: Path) -> int:
    """By the header: its length in 8 bytes, and JSON with every tensor's shape (safetensors' format description)."""
    with file.open("rb") as opened:
        start = opened.read(8)
        header = opened.read(struct.unpack("<Q", start)[0]) if len(start) == 8 else b"{}"
    try:
        return sum(math.prod(tensor["shape"]) for name, tensor in json.loads(header).items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError):  # the load will say what is wrong with it
        return file.stat().st_size


def _gguf_bits(name: str) -> float:
    """Bits of a parameter in a GGUF file, by its name; a guess for one that does not say."""
    found = _QUANTIZED.search(name)
    if found is None:
        return 8.0
    if found[1]:
        return int(found[1]) + 0.5
    return 16.0 if found[2] else 32.0


def _json_of(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
