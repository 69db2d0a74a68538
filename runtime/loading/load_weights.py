"""Loads a checkpoint's weights into a transformers model, and names all missing, superfluous and mismatched tensors.

By itself, transformers fills missing tensors with random numbers and ignores unknown ones.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, modeling_utils
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from runtime.errors import ModelUnavailable
from runtime.loading.gguf_loading import GgufTensors
from runtime.loading.model_files import check_files
from runtime.loading.stored_tensors import WRAPPERS
from runtime.model.catalogue import ModelSpec
from runtime.model.load_errors import mismatched, named

# Buffers without weights that older versions of transformers saved: causal masks and their fill value.
_MASK = re.compile(r"(?P<module>.+\.(?:attn|attention))\.(?:bias|masked_bias)")


def load_weights(
    spec: ModelSpec, folder: Path, source: Mapping[str, Any], config: Any, dtype: Any, tensors: GgufTensors
) -> Any:
    """Load a model with a checkpoint's weights, in evaluation mode.

    Args:
        spec: the model, for error messages.
        folder: the checkpoint's folder.
        source: further keyword arguments for ``from_pretrained`` that identify the checkpoint.
        config: transformers' configuration of the model.
        dtype: the weights' number type, as ``from_pretrained`` accepts it.
        tensors: the record from ``runtime.loading.gguf_loading.reading``, inside whose block this must be called.

    Raises:
        ModelUnavailable: tensors are missing, superfluous or of shapes that do not match the configuration; files are
            missing; or the model is not a causal language model.
    """
    check_files(spec, folder)
    _check_class(spec, config)
    with _conversion_errors() as unconverted:
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                key_mapping={WRAPPERS: ""},
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below; transformers' own error does not name them
                **source,
            )
        except RuntimeError:
            if unconverted:
                raise mismatched(
                    spec.id, f"tensors for {named(unconverted)} are missing or do not fit together"
                ) from None
            raise
    model, info = loaded
    if missing := info["missing_keys"]:
        raise mismatched(spec.id, f"{named(tensors.gguf_names(missing))} missing", _left(model, config, info, tensors))
    if half := tensors.half_filled():
        raise mismatched(spec.id, f"{named(half)} missing")
    if wrong := info["mismatched_keys"]:
        name, found, expected = min(wrong)
        others = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        (name,) = tensors.gguf_names({name})
        raise mismatched(spec.id, f"{name} is {list(found)} where its configuration needs {list(expected)}{others}")
    if left := _left(model, config, info, tensors):
        raise mismatched(spec.id, f"{type(model).__name__} has no place for {named(left)}")
    return model


def _check_class(spec: ModelSpec, config: Any) -> None:
    """Refuse a model for which transformers has no causal language model."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        name = ", ".join(config.architectures or [config.model_type])
        raise ModelUnavailable(
            f"{spec.id} cannot be served: transformers has no causal language model for {name}; serve a text model"
        )


def _left(model: Any, config: Any, info: dict[str, Any], tensors: GgufTensors) -> set[str]:
    """Return the checkpoint's tensors for which the model has no parameter and that are not known to be irrelevant."""
    left = tensors.unused | info["unexpected_keys"]
    left -= {name for name, _ in model.named_buffers()}  # saved by older versions of transformers, computed by this one
    left = {name for name in left if not _is_mask(model, name)}
    if left and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        left -= _known_to_whole(config, left)
    return left


def _is_mask(model: Any, name: str) -> bool:
    """Return whether a tensor is an attention mask or its fill value, of a module that the model has."""
    found = _MASK.fullmatch(name)
    if found is None:
        return False
    modules = {module for module, _ in model.named_modules()}
    return found["module"] in modules or f"{model.base_model_prefix}.{found['module']}" in modules


def _known_to_whole(config: Any, names: set[str]) -> set[str]:
    """Return the superfluous tensors that belong to other parts of a multimodal model, such as towers and projectors.

    Args:
        config: configuration of the multimodal model, of which only the text model is loaded.
        names: names of superfluous tensors, as transformers reports them.
    """
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(config)
    places = whole.state_dict()
    transforms = get_model_conversion_mapping(whole)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    prefix = whole.base_model_prefix
    return {name for name in names if rename_source_key(name, renamings, converters, prefix, places)[0] in places}


@contextlib.contextmanager
def _conversion_errors() -> Iterator[dict[str, str]]:
    """Collect the tensors that transformers cannot convert from a checkpoint's, by name.

    transformers only logs their names; its exception does not contain them.
    """
    found: dict[str, str] = {}
    report = vars(modeling_utils)["log_state_dict_report"]

    def noted(**arguments: Any) -> None:
        found.update(arguments["loading_info"].conversion_errors)
        report(**arguments)

    vars(modeling_utils)["log_state_dict_report"] = noted
    try:
        yield found
    finally:
        vars(modeling_utils)["log_state_dict_report"] = report
