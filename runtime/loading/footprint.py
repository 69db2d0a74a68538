"""Estimates the memory that a model needs before it is loaded, the budget for all models, and each one's KV cache size.

Nothing here reads weights: the size of a snapshot is known, that of another source is estimated from its files.
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

from runtime.loading.encoder_folder import is_encoder
from runtime.loading.model_files import WEIGHT_FILES
from runtime.model import gguf_split
from runtime.model.config import DecoderConfig, UnsupportedDecoder
from runtime.model.families import read_config
from runtime.model.snapshot_folder import MODEL, WEIGHTS

_LEAST_KV = 16 << 20  # smallest useful KV cache, in bytes
_PROCESS_BYTES = 256 << 20  # Python, the libraries and the requests themselves
_SAFE_SHARE = 0.95  # of the memory limit, beyond which the process is killed
_BYTES = {"int4": 0.8, "int8": 1.05, "bfloat16": 2.0, "float16": 2.0, "float32": 4.0}  # per parameter, with scales
_PACKED_FILE = 1.05  # bytes of a GGUF file's weights in its own types, for each byte of the file
_QUANTIZED = re.compile(r"[-_.](?:i?q(\d)|(b?f16)|f32)", re.IGNORECASE)  # llama.cpp's file names


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory that a model needs, in bytes.

    Args:
        weights: size of the weights in their serving form.
        texts: size of a KV cache for all sequences at full length; None if unknown.
        pinned: whether the model is exempt from eviction.
    """

    weights: int
    texts: int | None = None
    pinned: bool = False


def default_budget(limit: int) -> int:
    """Return the default memory budget of all models, in bytes.

    Args:
        limit: bytes that the process may use.
    """
    return max(limit // 2, int(limit * _SAFE_SHARE) - _PROCESS_BYTES)


def kv_bytes(budget: int, own: Footprint, others: Sequence[Footprint]) -> int:
    """Return the size of a model's KV cache.

    Models share the memory that their weights leave free evenly, and the part that one cannot use goes to the others.
    No model, even a single one, gets more than half of it. If not all models fit at once, a model shares only with the
    pinned ones and, if it is pinned itself, with the largest unpinned one that fits with them.

    Args:
        budget: memory budget of all models, in bytes.
        own: the model's own footprint.
        others: the other models' footprints.

    Returns:
        Bytes; no more than the model can use and, unless it can use less, at least 16 MiB.
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
    level = 0.0  # share of each model that can use as much
    for parts, use in zip(range(len(group), 0, -1), sorted(map(_most, group)), strict=True):
        level = left // parts
        if use > level:
            break
        left -= int(use)
    return int(max(min(level, most, _most(own)), min(_LEAST_KV, _most(own))))


def _most(footprint: Footprint) -> float:
    """Return the largest KV cache that a model can use, in bytes; infinity if unknown."""
    return math.inf if footprint.texts is None else footprint.texts


def _fit(budget: int, group: Sequence[Footprint]) -> bool:
    """Return whether models fit a budget together, each with the smallest useful KV cache."""
    return sum(member.weights + min(_LEAST_KV, _most(member)) for member in group) <= budget


def texts_bytes(config: DecoderConfig, rows: int) -> int:
    """Return the bytes of a KV cache for a number of sequences at full length, in float32, the largest type.

    Args:
        config: the decoder's configuration.
        rows: number of sequences.
    """
    return rows * config.context_length * 2 * 4 * len(config.layers) * config.kv_width


def snapshot_footprint(folder: Path, rows: int) -> Footprint | None:
    """Return the footprint of a model with a snapshot on disk; None if there is none or it is incomplete.

    Args:
        folder: the snapshot's folder.
        rows: number of sequences that run at once.
    """
    try:
        content = json.loads((folder / MODEL).read_bytes())["content"]
        config, encodes = DecoderConfig.from_json(content["facts"]["decoder"]), content["facts"]["encoder"] is not None
        return Footprint((folder / WEIGHTS).stat().st_size, 0 if encodes else texts_bytes(config, rows))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def source_footprint(path: Path, dtype: str, reference_dtype: str, rows: int) -> Footprint:
    """Estimate a model's footprint from its source's files.

    Args:
        path: a folder in transformers' layout, or a ``.gguf`` file.
        dtype: the weights' number type in the fast engine.
        reference_dtype: the weights' number type in the reference engine, which serves models that the fast one does
            not support. It allocates keys and values per request; they are not counted.
        rows: number of sequences that run at once.

    Raises:
        OSError: the files cannot be read.
    """
    if path.is_file():
        size = sum(part.stat().st_size for part in gguf_split.parts(path))
        if dtype == "gguf":
            return Footprint(int(size * _PACKED_FILE))
        return Footprint(int(size * 8 / _gguf_bits(path.name) * _BYTES[dtype]))
    config = _json_of(path / "config.json")
    parameters = _parameters(path, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    if is_encoder(path, config):  # it keeps no keys and values
        return Footprint(int(parameters * _BYTES.get(dtype, _BYTES["float32"])), 0)
    try:
        texts = texts_bytes(read_config(config)[0], rows)
    except UnsupportedDecoder:
        return Footprint(int(parameters * _BYTES[reference_dtype]), 0)
    return Footprint(int(parameters * _BYTES.get(dtype, _BYTES["float32"])), texts)


def _parameters(folder: Path, dtype: str) -> float:
    """Return the number of parameters of a checkpoint; for pickled weights, estimated from the files' size.

    Args:
        folder: a folder in transformers' layout.
        dtype: number type of the checkpoint.
    """
    files = sorted(folder.glob(WEIGHT_FILES[0]))
    if files:
        return sum(map(_safetensors_parameters, files))
    return sum(file.stat().st_size for file in folder.glob(WEIGHT_FILES[1])) / _BYTES.get(dtype, 4.0)


def _safetensors_parameters(file: Path) -> int:
    """Count a file's parameters from its header: 8 bytes of length, then JSON with the shapes (safetensors' format)."""
    with file.open("rb") as opened:
        start = opened.read(8)
        header = opened.read(struct.unpack("<Q", start)[0]) if len(start) == 8 else b"{}"
    try:
        shapes = {name: tensor["shape"] for name, tensor in json.loads(header).items() if name != "__metadata__"}
        return sum(math.prod(shape) * (8 if name.endswith(".qweight") else 1) for name, shape in shapes.items())
    except (ValueError, KeyError, TypeError):  # the load will report what is wrong
        return file.stat().st_size


def _gguf_bits(name: str) -> float:
    """Return the bits per parameter of a GGUF file, from its name; 8 if the name does not say."""
    found = _QUANTIZED.search(name)
    if found is None:
        return 8.0
    if found[1]:
        return int(found[1]) + 0.5
    return 16.0 if found[2] else 32.0


def _json_of(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file; an empty one if the content is something else."""
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
