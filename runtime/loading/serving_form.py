"""Reads a model's files into the form from which a serving snapshot is written, if possible without torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.errors import ServiceError
from runtime.loading.checkpoint_tokenizer import read_tokenizer
from runtime.loading.convert import convert_to, count_parameters, with_actual_head
from runtime.loading.encoder_folder import encoder_at
from runtime.loading.encoder_form import form_of_encoder
from runtime.loading.gguf_serving import form_from_gguf
from runtime.loading.model_facts import model_facts
from runtime.loading.model_files import check_files, safetensors_files
from runtime.loading.quantized_source import QuantizedSource
from runtime.loading.safetensors_source import SafetensorsSource
from runtime.loading.snapshot_writer import Weight
from runtime.model.catalogue import ModelSpec
from runtime.model.config import UnsupportedDecoder
from runtime.model.families import FAMILIES, configured_end_ids, read_config
from runtime.model.load_errors import unavailable
from runtime.model.packing import SnapshotKind
from runtime.model.progress import Progress
from runtime.model.quantization import read_quantization
from runtime.model.snapshot import Facts
from runtime.model.tokenizer import Tokenizer

_log = logging.getLogger("warmstart.load")

Form = tuple[Facts, Tokenizer, list[Weight]]


def serving_form(spec: ModelSpec, path: Path, kind: SnapshotKind, progress: Progress) -> Form:
    """Load a model's properties, tokenizer and converted weights, from which a snapshot is written.

    Args:
        spec: the model.
        path: a folder in transformers' layout, or a ``.gguf`` file.
        kind: number type of the snapshot's matrices.
        progress: progress callback.

    Raises:
        UnsupportedDecoder: the fast decoder does not support the model.
        ModelUnavailable: the files cannot be loaded, or do not contain exactly the model's weights.
    """
    direct: Callable[[ModelSpec, Path, SnapshotKind, Progress], Form] | None = None
    if spec.adapter is None and path.suffix.lower() == ".gguf":
        direct = form_from_gguf
    elif spec.adapter is None and path.is_dir() and encoder_at(spec, path):
        direct = form_of_encoder
    elif spec.adapter is None and path.is_dir() and safetensors_files(path):
        direct = _from_safetensors
    if direct is not None:
        try:
            form = direct(spec, path, kind, progress)
        except (ServiceError, UnsupportedDecoder):
            raise
        except Exception as error:  # the tokenizers library raises nothing narrower
            _log.warning("loading %s failed", spec.id, exc_info=error)
            raise unavailable(spec, error) from error
    else:
        try:
            from runtime.loading.checkpoint import form_through_transformers  # importing torch takes seconds
        except ModuleNotFoundError as error:
            raise unavailable(spec, error) from error
        form = form_through_transformers(spec, path, kind, progress)
    try:
        form[1].to_json()
    except Exception as error:  # the library raises nothing narrower
        raise UnsupportedDecoder("a tokenizer that cannot be written as tokenizer.json") from error
    return form


def _from_safetensors(spec: ModelSpec, folder: Path, kind: SnapshotKind, progress: Progress) -> Form:
    """Load a checkpoint with safetensors files. Arguments, result and errors as for ``serving_form``."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    decoder, layout = read_config(config)
    check_files(spec, folder)
    progress("reading tokenizer", None)
    tokenizer = read_tokenizer(folder)
    progress("reading weights", None)
    files, scheme = SafetensorsSource(safetensors_files(folder)), read_quantization(config)
    source = files if scheme is None else QuantizedSource(files, scheme)
    decoder = with_actual_head(decoder, layout, source)
    weights = convert_to(kind, decoder, layout, source, spec.id)
    generation = folder / "generation_config.json"
    configured = json.loads(generation.read_bytes()) if generation.is_file() else None
    facts = model_facts(
        spec,
        folder,
        kind,
        decoder,
        tokenizer,
        architecture=(config.get("architectures") or [FAMILIES[config["model_type"]].architecture])[0],
        parameters=count_parameters(decoder, layout, source),
        configured_ends=configured_end_ids(config, configured),
    )
    return facts, tokenizer, weights
