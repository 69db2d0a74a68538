"""Merges LoRA adapters into a model's weights: ``W + alpha / r * B A`` (arXiv:2106.09685), and peft's variants of it.

An adapter's files are untrusted input: every option of its configuration is checked, its tensors are compared with
those that the options require for this model, and neither pickles nor references to code are loaded.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from runtime.errors import ModelUnavailable
from runtime.loading.adapters import adapter_files, read_config, refused
from runtime.model.catalogue import ModelSpec

_log = logging.getLogger("warmstart.load")

_PREFIX = "base_model.model."  # prefix of every tensor's name in an adapter's file
_WRAPPERS = re.compile(
    rf"^(?:(?:module|_orig_mod)\.)*({re.escape(_PREFIX)})(?:(?:module|_orig_mod)\.)*"
)  # as in ``WRAPPERS`` of ``runtime.loading.stored_tensors``
_MIXTURE = re.compile(r"\.(?:experts|router|gate|block_sparse_moe)\.")  # experts and routers in tensors' names

_READ = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias", "lora_bias"}
_READ |= {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"}
# Options that affect only training or storage. fan_in_fan_out is derived from the model's modules.
_NO_MATTER = {"peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version"}
_NO_MATTER |= {"inference_mode", "fan_in_fan_out", "lora_dropout", "init_lora_weights", "eva_config"}
_NO_MATTER |= {"runtime_config", "megatron_core", "qalora_group_size"}
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")  # the others also change the base model's weights


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter in memory.

    Args:
        folder: the adapter's folder.
        options: the options of ``peft.LoraConfig`` that affect the merge.
        tensors: the tensors in float32, by their names in the file without wrappers' prefixes.
    """

    folder: Path
    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def read_adapter(spec: ModelSpec) -> Adapter:
    """Read and check a model's adapter; the model itself need not be loaded.

    Raises:
        ModelUnavailable: it is not a LoRA adapter of a causal language model, has options that cannot be merged, or has
            damaged or missing files.
    """
    config_file, weights = adapter_files(spec)
    folder = config_file.parent
    config = read_config(folder)
    if config.get("peft_type") != "LORA":
        raise refused(folder, f"it is of type {config.get('peft_type')}; only LORA can be merged")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise refused(folder, f"it was trained for {config['task_type']}; only CAUSAL_LM is served")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        raise refused(
            folder,
            f"init_lora_weights={config['init_lora_weights']!r} changes the model's own weights; "
            "convert it to a plain LoRA with peft and save it again",
        )
    for option, value in config.items():
        if value and option not in _READ | _NO_MATTER:
            raise refused(folder, f"{option} is an option that cannot be merged")
    try:
        saved = load_file(weights)
    except (OSError, SafetensorError) as error:
        _log.warning("adapter %s cannot be read", folder.name, exc_info=error)
        raise refused(folder, f"{weights.name} is damaged; copy it again") from error
    tensors = {_WRAPPERS.sub(r"\1", name): tensor.float() for name, tensor in saved.items()}
    if len(tensors) != len(saved):
        raise refused(folder, f"{weights.name} holds tensors twice, with and without a wrapper's prefix; save it again")
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise refused(folder, f"{broken[0]} holds numbers that are not finite; train or copy it again")
    return Adapter(folder, {name: value for name, value in config.items() if name in _READ}, tensors)


def merge(model: Any, adapter: Adapter) -> Any:
    """Merge an adapter into a model's weights, and return the model.

    Args:
        model: the transformers model in float32; changed in place.
        adapter: the adapter, from ``read_adapter``.

    Raises:
        ModelUnavailable: the adapter does not fit this model.
    """
    wanted = type(model).__name__
    touched = sorted(filter(_MIXTURE.search, adapter.tensors))
    if touched and _has_stacked_experts(model):
        raise refused(
            adapter.folder,
            f"{touched[0]} changes the experts or a router of {wanted}, which cannot be merged; "
            "train it on attention and other linear layers only",
        )
    try:
        with torch.no_grad():
            # The meta device allocates no memory, whatever rank the file requests. (low_cpu_mem_usage allocates, and
            # patches torch for other threads too.)
            config = LoraConfig(
                **adapter.options,
                task_type="CAUSAL_LM",
                inference_mode=True,
                init_lora_weights=False,
                fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            )
            embeddings = _embeddings(model)
            with torch.device("meta"):
                wrapped = PeftModel(model, config)
            places = get_peft_model_state_dict(wrapped, wrapped.state_dict(), save_embedding_layers=False)
            _check(adapter, places, embeddings, wanted)
            _take_embeddings(model, adapter, places, embeddings)
            tensors = {name: adapter.tensors[name] for name in places}
            set_peft_model_state_dict(wrapped, tensors, low_cpu_mem_usage=True)
            return wrapped.merge_and_unload(safe_merge=True)
    except ModelUnavailable:
        raise
    except Exception as error:  # the library raises nothing narrower
        _log.warning("adapter %s cannot be merged into %s", adapter.folder.name, wanted, exc_info=error)
        raise refused(
            adapter.folder,
            f"{wanted} has no modules for it ({type(error).__name__}; the log has the details); "
            "it must have been trained on this model",
        ) from error


def _has_stacked_experts(model: Any) -> bool:
    """Whether a model keeps the matrices of all experts of a layer in one parameter, where peft has no place for them.

    No other parameters have three dimensions, except those of convolutions.
    """
    return any(
        parameter.ndim == 3
        for module in model.modules()
        if not isinstance(module, torch.nn.Conv1d)
        for parameter in module.parameters(recurse=False)
    )


def _check(adapter: Adapter, places: Mapping[str, Tensor], embeddings: Mapping[str, Any], wanted: str) -> None:
    """Check that the file contains exactly the tensors that the options require, in the right shapes.

    Args:
        adapter: the adapter.
        places: the tensors that peft creates for the options, by name.
        embeddings: the model's embedding and head, from ``_embeddings``.
        wanted: name of the model's class, for error messages.

    Raises:
        ModelUnavailable: a tensor is missing, superfluous or of another shape.
    """
    shapes = {name: place.shape for name, place in places.items()}
    shapes = {name: module.weight.shape for name, module in embeddings.items()} | shapes
    if missing := sorted(places.keys() - adapter.tensors.keys()):
        raise refused(adapter.folder, f"{missing[0]} is missing; {wanted} needs it with these options")
    for name, tensor in sorted(adapter.tensors.items()):
        if name not in shapes:
            raise refused(adapter.folder, f"{wanted} has no place for {name}; it was trained on another model")
        if tensor.shape != shapes[name]:
            found, expected = list(tensor.shape), list(shapes[name])
            raise refused(
                adapter.folder,
                f"{name} is {found} where {wanted} needs {expected}; "
                "it was trained on another model, vocabulary or rank",
            )


def _embeddings(model: Any) -> dict[str, Any]:
    """Return the modules of the embedding and the head, by the names of their weights in an adapter's file."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    named = {f"{_PREFIX}{name}": module for name, module in model.named_modules() if module in layers}
    return {name + end: module for name, module in named.items() for end in (".weight", ".base_layer.weight")}


def _take_embeddings(model: Any, adapter: Adapter, places: Mapping[str, Tensor], embeddings: Mapping[str, Any]) -> None:
    """Copy full embedding weights from the file, and untie embedding and head if the adapter changes one of them."""
    for name in embeddings.keys() & adapter.tensors.keys() - places.keys():
        embeddings[name].weight.copy_(adapter.tensors[name])
    first, *_, last = embeddings.values()
    touched = {name.removesuffix("weight") for name in embeddings if name.endswith(".weight")}
    if first.weight is last.weight and any(name.startswith(tuple(touched)) for name in places):
        last.weight = torch.nn.Parameter(first.weight.clone())
        model.config.tie_word_embeddings = False
