"""Completes a model's configuration with the GGUF keys that transformers ignores: RoPE scaling, widths, caps, windows.

Every key in the model's namespace is read by transformers, read here, known not to change an answer, refused by name,
or reported in a warning. Keys and defaults are those of llama.cpp (``llama-arch.cpp``, ``llama-model.cpp``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from typing import Any

import numpy as np

from runtime.errors import ModelUnavailable
from runtime.model.gguf_header import GGUFHeader

_log = logging.getLogger("warmstart.load")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Keys that change nothing here: names, sizes that the tensors show, and values that only other programs use.
_HARMLESS = _words(
    "block_count context_length embedding_length feed_forward_length vocab_size tensor_data_layout "
    "attention.head_count attention.head_count_kv rope.scaling.finetuned pooling_type classifier.output_labels"
)
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
# Keys whose value is set in the configuration, under the first of these names that it has.
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "attention.key_length": ("head_dim",),
    "attention.sliding_window": ("sliding_window",),
    "sliding_window": ("sliding_window",),
    "attention.layer_norm_epsilon": _EPSILONS,
    "attention.layer_norm_rms_epsilon": _EPSILONS,
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "use_parallel_residual": ("use_parallel_residual",),
}
# Values with which a key changes nothing if the configuration has no attribute for it.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "attention.causal": (True,),
    "attention.scale": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.temperature_scale": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_weights_scale": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "leading_dense_block_count": (0,),
    "attention.shared_kv_layers": (0,),
    "embedding_length_per_layer_input": (0,),
}
_ROTARY = _words(
    "rope.freq_base rope.freq_base_swa rope.dimension_count rope.scale_linear rope.scaling.type rope.scaling.factor "
    "rope.scaling.attn_factor rope.scaling.original_context_length rope.scaling.alpha rope.scaling.yarn_ext_factor "
    "rope.scaling.yarn_attn_factor rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow "
    "rope.scaling.yarn_log_multiplier attention.value_length attention.sliding_window_pattern"
)
# Architectures whose configuration transformers reads completely, including their own rotary parameters.
_WHOLE = frozenset({"qwen35", "qwen35moe", "lfm2", "gemma4"})
_TOKENIZER = _words(
    "model pre tokens token_type scores merges precompiled_charsmap add_bos_token add_eos_token add_space_prefix "
    "remove_extra_whitespaces suppress_tokens bos_token_id eos_token_id eot_token_id eom_token_id unknown_token_id "
    "seperator_token_id padding_token_id cls_token_id mask_token_id fim_pad_token_id fim_rep_token_id fim_sep_token_id "
    # These change nothing: a decoder has no separator or token types, and fill-in-the-middle is not offered.
    "add_sep_token token_type_count fim_pre_token_id fim_suf_token_id fim_mid_token_id prefix_token_id "
    "suffix_token_id middle_token_id"
)


def complete(config: Any, header: GGUFHeader, read: Collection[str], *, whole: Collection[str] = _WHOLE) -> None:
    """Set the values of a GGUF file that are not yet read in a configuration, or refuse the file.

    Args:
        config: the file's configuration, transformers' or one with the same attributes; changed in place.
        header: the file's header.
        read: the keys that have been read, without the architecture's prefix.
        whole: architectures whose configuration has been read completely.

    Raises:
        ModelUnavailable: the model's class does not support a key's value; the message names key and value.
    """
    unknown = []
    prefix = f"{header.architecture}."
    for key, value in header.metadata.items():
        if key.startswith("tokenizer.ggml."):
            if key.removeprefix("tokenizer.ggml.") not in _TOKENIZER:
                unknown.append(key)
        elif key.startswith(prefix):
            name = key.removeprefix(prefix)
            if name in read or name in _HARMLESS or name in _ROTARY or header.architecture in whole:
                continue
            if not _set(config, name, value):
                unknown.append(key)
    if unknown:
        _log.warning("the GGUF file has keys that are not known here and are left out: %s", ", ".join(sorted(unknown)))
    if header.architecture not in whole:
        _complete_heads(config, header)
        _complete_rotary(config, header)


def _set(config: Any, name: str, value: Any) -> bool:
    """Set a key's value in a configuration, unless it changes nothing; return whether the key is known.

    Raises:
        ModelUnavailable: the model's class does not support the value.
    """
    if name.endswith("sliding_window") and value == 0:
        value = None  # llama.cpp's converter writes 0 for a model without windows
    for attribute in _ATTRIBUTES.get(name, ()):
        if hasattr(config, attribute):
            setattr(config, attribute, value)
            return True
    if name not in _ATTRIBUTES and name not in _NEUTRAL:
        return False
    neutral = list(_NEUTRAL.get(name, ()))
    if name == "attention.key_length":
        neutral.append(_head_width(config))
    if name.endswith("sliding_window") and (value is None or value >= config.max_position_embeddings):
        neutral.append(value)
    if value not in neutral:
        raise unsupported(name, value)
    return True


def _complete_heads(config: Any, header: GGUFHeader) -> None:
    """Check the width of the attention heads, and set which layers use sliding-window attention.

    Raises:
        ModelUnavailable: the model's class does not support the file's values.
    """
    width = _head_width(config)
    if width and (value := header.of_model("attention.value_length", width)) != width:
        raise unsupported("attention.value_length", value)
    pattern = header.of_model("attention.sliding_window_pattern")
    if pattern is None:
        return
    if getattr(config, "layer_types", None) is None:
        raise unsupported("attention.sliding_window_pattern", pattern)
    layers = range(config.num_hidden_layers)
    windowed = [bool((i + 1) % int(pattern)) if np.ndim(pattern) == 0 else bool(pattern[i]) for i in layers]
    config.layer_types = ["sliding_attention" if yes else "full_attention" for yes in windowed]


def _head_width(config: Any) -> int:
    """Return the width of an attention head; 0 for models without attention."""
    width = getattr(config, "head_dim", None)
    heads = getattr(config, "num_attention_heads", 0)
    return int(width or (config.hidden_size // heads if heads else 0))


def _complete_rotary(config: Any, header: GGUFHeader) -> None:
    """Set the rotary frequencies (arXiv:2104.09864) and their scaling in transformers' ``rope_parameters``.

    Raises:
        ModelUnavailable: the model's class does not support the file's values.
    """
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        for key in ("rope.scaling.factor", "rope.scale_linear", "rope.scaling.attn_factor"):
            if (value := header.of_model(key, 1)) not in (0, 1):
                raise unsupported(key, value)
        return
    base = header.of_model("rope.freq_base", 10_000.0)
    width = _head_width(config)
    rotated = header.of_model("rope.dimension_count", width)
    if "full_attention" in rope:  # separate parameters for layers with full and with sliding-window attention
        rope["sliding_attention"]["rope_theta"] = header.of_model("rope.freq_base_swa", 10_000.0)
        rope = rope["full_attention"]
    rope["rope_theta"] = base
    if "partial_rotary_factor" in rope:
        rope["partial_rotary_factor"] = rotated / width
    elif rotated != width:
        raise unsupported("rope.dimension_count", rotated)
    rope.update(_scaling(header, rotated, config.max_position_embeddings))
    if hasattr(config, "original_max_position_embeddings"):  # Phi-3 has it there, where it takes precedence
        trained = header.of_model("rope.scaling.original_context_length", config.max_position_embeddings)
        config.original_max_position_embeddings = trained


def _scaling(header: GGUFHeader, rotated: int, context: int) -> dict[str, Any]:
    """Return the scaling parameters for ``rope_parameters``.

    Args:
        header: the file's header.
        rotated: number of a head's values that are rotated, an even number.
        context: the model's context length in tokens.

    Raises:
        ModelUnavailable: the scaling is not supported, or its tensors are missing.
    """
    kind = header.of_model("rope.scaling.type", "linear")
    factor = float(header.of_model("rope.scaling.factor", header.of_model("rope.scale_linear", 0)) or 1)
    attention = float(header.of_model("rope.scaling.attn_factor", 1))
    trained = int(header.of_model("rope.scaling.original_context_length", context))
    if (alpha := header.of_model("rope.scaling.alpha", 0)) != 0:
        raise unsupported("rope.scaling.alpha", alpha)
    frequencies = _factors(header, "rope_freqs.weight", rotated)
    if kind == "none":
        factor = 1.0
    if kind == "yarn":
        return _yarn(header, factor, attention, trained)
    if kind == "longrope":
        short, long = (_factors(header, f"rope_factors_{name}.weight", rotated) for name in ("short", "long"))
        if short is None or long is None:
            raise ModelUnavailable("the GGUF file has rope.scaling.type=longrope, but no tensors rope_factors_*.weight")
    elif kind in ("linear", "none"):
        if frequencies is None and attention == 1:
            return {"rope_type": "default"} if factor == 1 else {"rope_type": "linear", "factor": factor}
        # Llama 3.1 and later have a divisor for each frequency, the same for short and long texts.
        short = long = np.ones(rotated // 2, np.float32) if frequencies is None else frequencies
    else:
        raise unsupported("rope.scaling.type", kind)
    return {
        "rope_type": "longrope",
        "short_factor": [float(value) * factor for value in short],
        "long_factor": [float(value) * factor for value in long],
        "factor": 1.0,
        "attention_factor": attention,
        "original_max_position_embeddings": trained,
    }


def _yarn(header: GGUFHeader, factor: float, attention: float, trained: int) -> dict[str, Any]:
    """Return the scaling parameters of YaRN (arXiv:2309.00071).

    Raises:
        ModelUnavailable: the file has a variant that is not supported.
    """
    for key, neutral in (("yarn_ext_factor", (1, -1)), ("yarn_attn_factor", (1,))):
        if (value := header.of_model(f"rope.scaling.{key}", 1)) not in neutral:
            raise unsupported(f"rope.scaling.{key}", value)
    if header.vector("rope_freqs.weight") is not None:
        raise ModelUnavailable(
            "the GGUF file has rope.scaling.type=yarn together with rope_freqs.weight: not supported"
        )

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    multiplier = float(header.of_model("rope.scaling.yarn_log_multiplier", 0))
    return {
        "rope_type": "yarn",
        "factor": factor,
        "attention_factor": attention * magnitude(1) / (magnitude(multiplier) if multiplier else 1),
        "original_max_position_embeddings": trained,
        "beta_fast": float(header.of_model("rope.scaling.yarn_beta_fast", 32)),
        "beta_slow": float(header.of_model("rope.scaling.yarn_beta_slow", 1)),
    }


def _factors(header: GGUFHeader, name: str, rotated: int) -> Any:
    """Return a tensor with a divisor for each frequency [rotated / 2]; None if the file does not have it.

    Raises:
        ModelUnavailable: the tensor has another length.
    """
    values = header.vector(name)
    if values is not None and len(values) != rotated // 2:
        raise ModelUnavailable(f"the GGUF file has {len(values)} values in {name}, not {rotated // 2}")
    return values


def unsupported(key: str, value: Any) -> ModelUnavailable:
    """Return the error for a key whose value the model's family does not support."""
    return ModelUnavailable(f"the GGUF file has {key}={value}, which is not supported for this model")
