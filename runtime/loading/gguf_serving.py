"""Reads a GGUF file into the form from which a serving snapshot is written, without torch and transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from runtime.loading.convert import convert, convert_to, count_parameters
from runtime.loading.encoder_form import encoder_weights
from runtime.loading.file_types import FileTypes
from runtime.loading.gguf_families import read_gguf
from runtime.loading.gguf_source import open_gguf
from runtime.loading.model_facts import model_facts
from runtime.loading.snapshot_writer import Weight
from runtime.model.catalogue import ModelSpec
from runtime.model.end_tokens import gguf_end_ids
from runtime.model.gguf_tokenizer import build_tokenizer
from runtime.model.packing import SnapshotKind
from runtime.model.progress import Progress
from runtime.model.snapshot import Facts
from runtime.model.tokenizer import Tokenizer


def form_from_gguf(
    spec: ModelSpec, file: Path, kind: SnapshotKind, progress: Progress
) -> tuple[Facts, Tokenizer, list[Weight]]:
    """Load a GGUF model's properties, tokenizer and converted weights, from which a snapshot is written.

    Args:
        spec: the model.
        file: the file, or any part of a split one.
        kind: number type of the snapshot's matrices.
        progress: progress callback.

    Raises:
        UnsupportedDecoder: the fast decoder does not support the model.
        ModelUnavailable: the tokenizer is not supported, or the file does not contain exactly the model's weights.
        ValueError: the file is damaged; the message names file and field.
        OSError: the file cannot be read.
    """
    header, source = open_gguf(file)
    decoder, layout, architecture, encoder = read_gguf(header)
    progress("reading tokenizer", None)
    tokenizer = build_tokenizer(header.metadata)
    progress("reading weights", None)
    if kind == "gguf":
        weights = convert(decoder, layout, source, model=spec.id, types=FileTypes(source, spec.id))
    else:
        weights = convert_to(kind, decoder, layout, source, spec.id)
    if encoder is not None:
        weights += encoder_weights(spec, encoder, layout, source, decoder.hidden)
    facts = model_facts(
        spec,
        file,
        kind,
        decoder,
        tokenizer,
        architecture=architecture,
        parameters=count_parameters(decoder, layout, source),
        configured_ends=gguf_end_ids(header.metadata),
    )
    return replace(facts, encoder=encoder.config if encoder else None), tokenizer, weights
