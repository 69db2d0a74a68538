"""Reads checkpoints with transformers: for the reference engine, and those that cannot be read without it."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers import modeling_gguf_pytorch_utils as gguf_loading
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from runtime.errors import ServiceError
from runtime.loading.checkpoint_tokenizer import read_tokenizer
from runtime.loading.convert import convert_to, with_actual_head
from runtime.loading.gguf_config import complete
from runtime.loading.gguf_loading import GgufTensors, reading
from runtime.loading.load_weights import load_weights
from runtime.loading.model_facts import model_facts
from runtime.loading.snapshot_writer import Weight
from runtime.loading.tensor_source import StateDictSource
from runtime.model.catalogue import ModelSpec
from runtime.model.config import UnsupportedDecoder
from runtime.model.end_tokens import gguf_end_ids
from runtime.model.families import read_config
from runtime.model.gguf_header import GGUFHeader, read_header
from runtime.model.gguf_tokenizer import build_tokenizer
from runtime.model.load_errors import unavailable
from runtime.model.packing import SnapshotKind
from runtime.model.progress import Progress, bar_class
from runtime.model.size_limits import check_sizes
from runtime.model.snapshot import Facts
from runtime.model.tokenizer import Tokenizer

_log = logging.getLogger("warmstart.load")

_READING = threading.Lock()  # libraries are patched while a model is read, which affects all threads
_MAPPED_AS = {  # architectures of GGUF files to transformers' names for them, where they differ
    "gpt-oss": "gpt_oss",
    "minimax-m2": "minimax_m2",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
}


def read(spec: ModelSpec, path: Path, device: str, dtype: str, progress: Progress) -> tuple[Any, Tokenizer]:
    """Load a model in evaluation mode on its device, and its tokenizer.

    Args:
        spec: the model.
        path: a folder in transformers' layout, or a ``.gguf`` file.
        device: torch's name of the device.
        dtype: torch's name of the weights' number type.
        progress: progress callback.

    Raises:
        ModelUnavailable: the files cannot be loaded, or do not contain exactly the model's weights.
    """
    with _reading(spec, progress) as tensors:
        number = getattr(torch, dtype)
        header = _header(path)
        model, tokenizer = _load(spec, path, header, _config(path, header), number, progress, tensors)
        if spec.adapter is not None:
            for parameter in model.parameters():  # buffers keep their types, as in transformers
                parameter.data = parameter.data.to(number)
        return model.to(device).eval(), tokenizer


def form_through_transformers(
    spec: ModelSpec, path: Path, kind: SnapshotKind, progress: Progress
) -> tuple[Facts, Tokenizer, list[Weight]]:
    """Load a model with transformers and convert it. Arguments, result and errors as for ``serving_form``."""
    with _reading(spec, progress) as tensors:
        header = _header(path)
        config = _config(path, header)
        decoder, layout = read_config(config.to_dict())
        if header is None and getattr(config, "quantization_config", None):
            raise UnsupportedDecoder("quantized weights with an adapter, or outside safetensors files")
        # The file's own type loses nothing; a GGUF file has several, all of which float32 represents.
        number = "auto" if header is None else torch.float32
        model, tokenizer = _load(spec, path, header, config, number, progress, tensors)
        source = StateDictSource(model.state_dict())
        layout = replace(layout, biases=None)  # transformers has checked them, and an adapter may add some
        decoder = with_actual_head(decoder, layout, source)
        facts = model_facts(
            spec,
            path,
            kind,
            decoder,
            tokenizer,
            architecture=type(model).__name__,
            parameters=sum(p.numel() for p in model.parameters()),
            configured_ends=model.generation_config.eos_token_id,
        )
        return facts, tokenizer, convert_to(kind, decoder, layout, source, spec.id)


def _source(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the keyword arguments with which transformers reads a folder or a ``.gguf`` file."""
    always = {"local_files_only": True, "trust_remote_code": False}  # if omitted, transformers asks on a terminal
    if path.suffix.lower() == ".gguf":
        return path.parent, {"gguf_file": path.name, **always}
    return path, always


def _header(path: Path) -> GGUFHeader | None:
    """Read the header of a ``.gguf`` file; None for a folder."""
    return read_header(path) if path.suffix.lower() == ".gguf" else None


def _config(path: Path, header: GGUFHeader | None) -> Any:
    """Read a model's configuration with transformers, completed with the keys of a GGUF file that it leaves out."""
    folder, source = _source(path)
    if header is None:
        check_sizes(json.loads((path / "config.json").read_bytes()))
    config = AutoConfig.from_pretrained(folder, **source)
    if header is not None:
        mappings: Any = GGUF_CONFIG_MAPPING
        mapped = mappings.get(_MAPPED_AS.get(header.architecture, header.architecture), {})
        complete(config, header, {key for key, name in mapped.items() if name is not None})
    return config


def _load(
    spec: ModelSpec,
    path: Path,
    header: GGUFHeader | None,
    config: Any,
    dtype: Any,
    progress: Progress,
    tensors: GgufTensors,
) -> tuple[Any, Tokenizer]:
    """Load a model and its tokenizer, and merge its adapter if it has one; the model is then float32, not ``dtype``."""
    folder, source = _source(path)
    progress("reading tokenizer", None)
    tokenizer = read_tokenizer(folder) if header is None else build_tokenizer(header.metadata)
    progress("reading weights", None)
    if spec.adapter is not None:
        from runtime.loading.lora import merge, read_adapter  # imports peft, which only adapters need

        adapter, dtype = read_adapter(spec), torch.float32
    model = load_weights(spec, folder, source, config, dtype, tensors)
    if header is not None:
        model.generation_config.eos_token_id = list(gguf_end_ids(header.metadata))
    if spec.adapter is not None:
        progress("merging adapter", None)
        model = merge(model, adapter)
    return model, tokenizer


@contextlib.contextmanager
def _reading(spec: ModelSpec, progress: Progress) -> Iterator[GgufTensors]:
    """Patch the libraries' GGUF readers and progress bars in a block, and convert errors to ``ModelUnavailable``."""
    try:
        with _READING, reading() as tensors, _progress_of_libraries(progress):
            yield tensors
    except (ServiceError, UnsupportedDecoder):
        raise
    except Exception as error:  # the libraries raise nothing narrower
        _log.warning("loading %s failed", spec.id, exc_info=error)
        raise unavailable(spec, error) from error


@contextlib.contextmanager
def _progress_of_libraries(progress: Progress) -> Iterator[None]:
    """Turn transformers' progress bars into progress reports, and its log output below errors off."""
    transformers_logging.set_verbosity_error()
    previous = transformers_logging.set_tqdm_hook(
        lambda factory, args, kwargs: bar_class(progress, "reading weights")(*args, **kwargs)
    )
    original = vars(gguf_loading)["tqdm"]  # this module draws its bar without the hook
    vars(gguf_loading)["tqdm"] = bar_class(progress, "converting")
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)
        vars(gguf_loading)["tqdm"] = original
