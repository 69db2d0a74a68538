"""LoRA adapters in a folder: which there are, which model each fits, and where its files lie. Torch is not imported.

An adapter is a folder as peft's ``save_pretrained`` writes it; its name is the folder's.
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
    """The models, and behind them every model with every adapter that fits it, as ``model:adapter``.

    An adapter that names one of the models as its base goes with that one only, any other with each. A folder that is
    no adapter is skipped with a warning.

    Args:
        specs: the models.
        folder: ``ADAPTERS_DIR``.

    Raises:
        SettingsError: there is no such folder.
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
    """The files of a model's adapter, the configuration first; none if it has no adapter.

    Raises:
        ModelUnavailable: they are not there, or in a form that is not read.
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
    """An adapter's configuration.

    Raises:
        ModelUnavailable: it is not a JSON object.
    """
    try:
        config = loads((folder / CONFIG).read_bytes())
    except (OSError, InvalidRequest) as error:
        raise refused(folder, f"{CONFIG} cannot be read; copy it again") from error
    if not isinstance(config, dict):
        raise refused(folder, f"{CONFIG} is not an object; copy it again")
    return config


def refused(folder: Path, reason: str) -> ModelUnavailable:
    """The error that names an adapter, and says why it is not served and what to do."""
    return ModelUnavailable(f"adapter {folder.name} cannot be served: {reason}")


def _fitting(models: Sequence[ModelSpec], adapter: Path) -> Sequence[ModelSpec]:
    """The models that an adapter names as its base, by id or hub id, else by the name's last part; else all."""
    try:
        base = read_config(adapter).get("base_model_name_or_path")
    except ModelUnavailable:  # said by the load
        return models
    if not isinstance(base, str):
        return models
    named = [spec for spec in models if base in (spec.id, spec.location)]
    alike = [spec for spec in models if _last(base) in (_last(spec.id), _last(spec.location))]
    return named or alike or models


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()
