"""Finds the LoRA adapters in ``ADAPTERS_DIR``, the models that they fit, and their files. Imports no torch.

An adapter is a folder as written by peft's ``save_pretrained``; its name is the folder's name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.errors import InvalidRequest, ModelUnavailable, SettingsError
from runtime.model.catalogue import ADAPTER_NAME, ModelSpec
from runtime.strict_json import loads

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

_log = logging.getLogger("warmstart.load")


def with_adapters(specs: Sequence[ModelSpec], folder: Path | None) -> list[ModelSpec]:
    """Return the models, followed by every combination of a model and a fitting adapter, as ``model:adapter``.

    An adapter that names one of the models as its base is combined with that model only, any other adapter with all. A
    folder that is not an adapter is skipped with a warning.

    Args:
        specs: the models.
        folder: the value of ``ADAPTERS_DIR``; None for no adapters.

    Raises:
        SettingsError: the folder does not exist.
    """
    if folder is None:
        return list(specs)
    if not folder.is_dir():
        raise SettingsError(f"ADAPTERS_DIR: {folder} is not a folder")
    models = [spec for spec in specs if spec.adapter is None]
    found = {spec.id: spec for spec in specs}
    for adapter in sorted(path for path in folder.iterdir() if path.is_dir()):
        if not (adapter / CONFIG).is_file():
            _log.warning("ADAPTERS_DIR: %s is skipped: it has no %s", adapter.name, CONFIG)
        elif not ADAPTER_NAME.fullmatch(adapter.name):
            _log.warning("ADAPTERS_DIR: %r is skipped: rename it to letters, digits and ._-", adapter.name)
        else:
            for spec in _fitting(models, adapter):
                made = spec.adapted(adapter)
                found.setdefault(made.id, made)
    return list(found.values())


def adapter_files(spec: ModelSpec) -> list[Path]:
    """Return the files of a model's adapter, the configuration first; an empty list if it has no adapter.

    Raises:
        ModelUnavailable: a file is missing, or the weights are a pickle, which is not read.
    """
    if spec.adapter is None:
        return []
    folder = Path(spec.adapter)
    files = [folder / CONFIG, folder / WEIGHTS]
    if all(file.is_file() for file in files):
        return files
    if (folder / PICKLED).is_file():
        raise refused(folder, f"{PICKLED} is a pickle, which can run code; save it again as {WEIGHTS}")
    raise refused(folder, f"it needs {CONFIG} and {WEIGHTS} in its folder in ADAPTERS_DIR")


def read_config(folder: Path) -> dict[str, Any]:
    """Read an adapter's configuration.

    Raises:
        ModelUnavailable: the file cannot be read or is not a JSON object.
    """
    try:
        config = loads((folder / CONFIG).read_bytes())
    except (OSError, InvalidRequest) as error:
        raise refused(folder, f"{CONFIG} cannot be read; copy it again") from error
    if not isinstance(config, dict):
        raise refused(folder, f"{CONFIG} is not an object; copy it again")
    return config


def refused(folder: Path, reason: str) -> ModelUnavailable:
    """Return the error for an adapter that cannot be served.

    Args:
        folder: the adapter's folder, whose name is shown.
        reason: why it cannot be served, and what to do.
    """
    return ModelUnavailable(f"adapter {folder.name} cannot be served: {reason}")


def _fitting(models: Sequence[ModelSpec], adapter: Path) -> Sequence[ModelSpec]:
    """Return the models that an adapter names as its base: by id or hub id, else by the name's last part; else all."""
    try:
        base = read_config(adapter).get("base_model_name_or_path")
    except ModelUnavailable:  # reported by the load
        return models
    if not isinstance(base, str):
        return models
    named = [spec for spec in models if base in (spec.id, spec.location)]
    alike = [spec for spec in models if _last(base) in (_last(spec.id), _last(spec.location))]
    return named or alike or models


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()
