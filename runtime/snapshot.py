"""Converted copies of models in the cache folder: where they lie, and how they get there whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

_FORMAT = 1
_STALE_SECONDS = 3600
_COMPLETE = "warmstart.json"  # written last, so its presence says that a conversion is whole


def folder_of(file: Path, cache: Path, dtype: torch.dtype) -> Path:
    """Where a file's copy belongs, named by what it depends on: the file as it is now, the number type, the format.

    Args:
        file: the GGUF file.
        cache: the cache folder.
        dtype: what the weights are converted to.

    Raises:
        OSError: the file is not there.
    """
    stat = file.stat()
    identity = f"{_FORMAT}|{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{dtype}|{transformers.__version__}"
    return cache / "snapshots" / f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def is_complete(folder: Path) -> bool:
    """Whether a copy was written to its end."""
    return (folder / _COMPLETE).is_file()


def save(model: Any, tokenizer: Any, folder: Path, *, source: str) -> None:
    """Written beside its place and renamed, so that a reader never sees half of it, whoever else writes.

    Args:
        model: with ``save_pretrained``, as is the tokenizer.
        tokenizer: the model's.
        folder: from ``folder_of``.
        source: the file's name, for people who look into the folder.

    Raises:
        OSError: the disk is read-only or full; nothing is left behind.
        SafetensorError: likewise, from the writing of the weights.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}-*"):  # by a process that was killed
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / _COMPLETE).write_text(json.dumps({"format": _FORMAT, "source": source}) + "\n")
        try:
            os.rename(partial, folder)
        except OSError:
            if not is_complete(folder):  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
