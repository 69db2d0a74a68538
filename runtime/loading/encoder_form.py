"""Reads the files of an encoder into the form from which a serving snapshot is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.errors import ModelUnavailable
from runtime.loading.checkpoint_tokenizer import read_tokenizer
from runtime.loading.convert import convert_to, count_parameters
from runtime.loading.encoder_folder import (
    EncoderFolder,
    EncoderShape,
    input_limit,
    named_reranker,
    read_encoder_folder,
    yes_or_no,
)
from runtime.loading.encoder_heads import logit_weight, stage_weights
from runtime.loading.model_facts import model_facts
from runtime.loading.model_files import check_files, safetensors_files
from runtime.loading.safetensors_source import SafetensorsSource
from runtime.loading.snapshot_writer import Weight
from runtime.loading.tensor_source import StateDictSource, TensorSource
from runtime.model.catalogue import ModelSpec
from runtime.model.checkpoint_layout import CheckpointLayout
from runtime.model.families import read_encoder
from runtime.model.families.encoders import ENCODERS
from runtime.model.packing import SnapshotKind
from runtime.model.progress import Progress
from runtime.model.snapshot import Facts
from runtime.model.tokenizer import Tokenizer

_NO_LIMIT = 1 << 24  # tokens; tokenizers without a limit have one of 1e30


def form_of_encoder(
    spec: ModelSpec, folder: Path, kind: SnapshotKind, progress: Progress
) -> tuple[Facts, Tokenizer, list[Weight]]:
    """Load an encoder's folder. Arguments, result and errors as for ``serving_form``."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    decoder, layout = read_encoder(config)
    check_files(spec, folder)
    progress("reading tokenizer", None)
    tokenizer = read_tokenizer(folder)
    shape = EncoderShape(decoder.hidden, decoder.context_length, tokenizer_limit(folder))
    if named_reranker(spec, folder, config):
        limit = input_limit(shape.context, shape.limit)
        encoder = EncoderFolder(yes_or_no(decoder.hidden, limit), {}, _answers(spec, tokenizer))
    else:
        encoder = read_encoder_folder(spec, folder, config, decoder, shape)
    progress("reading weights", None)
    source = _source(folder)
    weights = convert_to(kind, decoder, layout, source, spec.id)
    weights += encoder_weights(spec, encoder, layout, source, decoder.hidden)
    facts = model_facts(
        spec,
        folder,
        kind,
        decoder,
        tokenizer,
        architecture=(config.get("architectures") or [ENCODERS[config["model_type"]].architecture])[0],
        parameters=count_parameters(decoder, layout, source),
        configured_ends=None,
    )
    return replace(facts, encoder=encoder.config), tokenizer, weights


def encoder_weights(
    spec: ModelSpec, encoder: EncoderFolder, layout: CheckpointLayout, source: TensorSource, hidden: int
) -> list[Weight]:
    """Return the tensors of an encoder's stages, behind those of the decoder.

    Args:
        spec: the model.
        encoder: the encoder's description, with the names of its tensors.
        layout: how the checkpoint names its tensors.
        source: the checkpoint's tensors.
        hidden: width of a token's state.

    Raises:
        ModelUnavailable: a tensor is missing or of another shape.
    """
    weights = stage_weights(spec.id, encoder.config, encoder.tensors, source)
    if encoder.logit_tokens:
        weights.append(logit_weight(layout, encoder.logit_tokens, source, hidden, encoder.logit_matrix))
    return weights


def _answers(spec: ModelSpec, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of the tokens "yes" and "no".

    Raises:
        ModelUnavailable: the tokenizer does not have one of them.
    """
    ids = [tokenizer.encode(answer, False) for answer in ("yes", "no")]
    if any(len(tokens) != 1 for tokens in ids):
        raise ModelUnavailable(f'{spec.id} is named as a reranker, but "yes" and "no" are not tokens of its tokenizer')
    return tuple(tokens[0] for tokens in ids)


def tokenizer_limit(folder: Path) -> int | None:
    """Return the most tokens that the tokenizer's configuration allows; None for no limit."""
    file = folder / "tokenizer_config.json"
    found: Mapping[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    limit = found.get("model_max_length")
    return int(limit) if limit and limit < _NO_LIMIT else None


def _source(folder: Path) -> TensorSource:
    """Return the tensors of a checkpoint's safetensors files or, without any, of its pickled weights."""
    files = safetensors_files(folder)
    if files:
        return SafetensorsSource(files)
    import torch  # for pickled weights only

    state: dict[str, Any] = {}
    for file in sorted(folder.glob("pytorch_model*.bin")):
        state |= torch.load(file, map_location="cpu", weights_only=True)
    return StateDictSource(state)
