"""Puts together the properties of a model whose files were read, whatever their format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.engine.token_ids import known_ids
from runtime.model.catalogue import ModelSpec
from runtime.model.config import DecoderConfig
from runtime.model.end_tokens import end_ids
from runtime.model.gguf_header import read_header
from runtime.model.gguf_split import parts
from runtime.model.packing import SnapshotKind
from runtime.model.sampling_defaults import gguf_generation_config, sampling_defaults
from runtime.model.snapshot import Facts
from runtime.model.tokenizer import Tokenizer


def model_facts(
    spec: ModelSpec,
    path: Path,
    kind: SnapshotKind,
    decoder: DecoderConfig,
    tokenizer: Tokenizer,
    *,
    architecture: str,
    parameters: int,
    configured_ends: Any,
) -> Facts:
    """Return a model's properties for its snapshot.

    Args:
        spec: the model.
        path: its folder or file; the folder of a model from the hub is named like its commit.
        kind: number type of the snapshot's matrices.
        decoder: the decoder's configuration.
        tokenizer: the model's tokenizer.
        architecture: the model's class in transformers.
        parameters: number of parameters, a tied head counted once.
        configured_ends: ids of the tokens that end a text, as configured: a number, several, or None.
    """
    hub = spec.kind == "hub"
    return Facts(
        source=spec.location if hub else path.name,
        revision=path.name if hub else None,
        architecture=architecture,
        parameters=parameters,
        kind=kind,
        decoder=decoder,
        end_ids=known_ids(end_ids(configured_ends, tokenizer), decoder.vocabulary),
        sampling_defaults=configured_sampling(path),
    )


def configured_sampling(path: Path) -> tuple[tuple[str, float], ...]:
    """Return the sampling parameters that a model's files recommend, as (name, value).

    Args:
        path: a folder in transformers' layout, or a ``.gguf`` file.
    """
    if not path.is_dir():
        return sampling_defaults(gguf_generation_config(read_header(parts(path)[0]).metadata))
    file = path / "generation_config.json"
    return sampling_defaults(json.loads(file.read_bytes()) if file.is_file() else {})
