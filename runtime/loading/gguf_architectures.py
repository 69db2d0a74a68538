"""The architectures of GGUF files: for each the family that reads it, and what its files say in another way.

Those with mixtures of experts are in ``gguf_experts``. Values that llama.cpp takes for granted are in
``llama-model.cpp`` and ``src/models`` there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtime.errors import ModelUnavailable
from runtime.model.families.options import alternating
from runtime.model.gguf_header import GGUFHeader

Options = dict[str, Any]  # of a ``config.json``


@dataclass(frozen=True, slots=True)
class Architecture:
    """How an architecture of GGUF files maps to a family.

    Args:
        family: the family's ``model_type``.
        options: options that are the same for all files, and defaults of those that ``complete`` sets from keys.
        more: returns further options, from the header and the options so far.
        keys: keys that give an option under another name, besides those of ``gguf_families``.
        interleaved: whether values 2i and 2i + 1 of a head are rotated together (llama.cpp's ``ROPE_TYPE_NORM``).
        partial: whether a part of each head may be rotated.
        norm: name of the option for the norms' epsilon.
        rotary: whether positions are rotary.
        names: tensors with names of their own, by part; None for parts without tensors.
        allowed: the values that keys may have, as the family computes nothing else, the usual one first.
    """

    family: str
    options: Mapping[str, Any] = field(default_factory=dict)
    more: Callable[[GGUFHeader, Options], Mapping[str, Any]] = lambda header, options: {}
    keys: Mapping[str, str] = field(default_factory=dict)
    interleaved: bool = False
    partial: bool = False
    rotary: bool = True
    norm: str = "rms_norm_eps"
    names: Mapping[str, str | None] = field(default_factory=dict)
    allowed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def has_tensor(header: GGUFHeader, name: str) -> bool:
    """Return whether the first layer has a tensor."""
    return f"blk.0.{name}" in header.tensors


def _bert(header: GGUFHeader, options: Options) -> Options:
    """Return the sizes of the embeddings; of XLM-R's positions the file has only those that are used."""
    sizes = {"type_vocab_size": "token_types.weight", "max_position_embeddings": "position_embd.weight"}
    found = {name: header.rows(tensor) for name, tensor in sizes.items() if tensor in header.tensors}
    return {"type_vocab_size": 0, **found}


def llama_biases(header: GGUFHeader, options: Options) -> Options:
    """Return which projections of a Llama have biases; arguments as for ``Architecture.more``."""
    # A file may also have biases of the queries, keys and values alone.
    return {"attention_bias": has_tensor(header, "attn_output.bias"), "mlp_bias": has_tensor(header, "ffn_up.bias")}


def _granite(header: GGUFHeader, options: Options) -> Options:
    if not header.of_model("rope.scaling.finetuned", True):
        raise ModelUnavailable("the GGUF file has rope.scaling.finetuned=False, which is not supported for this model")
    return llama_biases(header, options)


def _scalar_of_gemma(large: int) -> Callable[[GGUFHeader, Options], Options]:
    """Return a function for Gemma's scale of attention scores, which differs in the model with ``large`` layers."""

    def read(header: GGUFHeader, options: Options) -> Options:
        wide = options["num_hidden_layers"] == large
        width = options["hidden_size"] // options["num_attention_heads"] if wide else options["head_dim"]
        return {"query_pre_attn_scalar": width}

    return read


def _gemma2(header: GGUFHeader, options: Options) -> Options:
    return {**_scalar_of_gemma(46)(header, options), "layer_types": alternating(options, 2)}


def _gemma3(header: GGUFHeader, options: Options) -> Options:
    windowed = bool(header.of_model("attention.sliding_window"))
    count = options["num_hidden_layers"]
    return {
        **_scalar_of_gemma(62)(header, options),
        "layer_types": alternating(options, 6) if windowed else ["full_attention"] * count,
    }


def _smollm3(header: GGUFHeader, options: Options) -> Options:
    count = options["num_hidden_layers"]
    return {**llama_biases(header, options), "no_rope_layers": [int((i + 1) % 4 != 0) for i in range(count)]}


def _exaone4(header: GGUFHeader, options: Options) -> Options:
    count = options["num_hidden_layers"]
    windowed = count == 64 or bool(header.of_model("attention.sliding_window"))  # as llama.cpp tells the 32B model
    if not windowed:
        return {"sliding_window": None, "layer_types": ["full_attention"] * count}
    return {"sliding_window": 4096, "sliding_window_pattern": "LLLG", "layer_types": alternating(options, 4)}


def lfm2_options(header: GGUFHeader, options: Options) -> Options:
    """Return which layers are convolutions, and whether those have biases; arguments as for ``Architecture.more``."""
    heads = header.of_model("attention.head_count_kv")
    kinds = ["full_attention" if count else "conv" for count in np.asarray(heads).tolist()]
    return {"layer_types": kinds, "conv_bias": has_tensor(header, "shortconv.conv.bias")}


def _stablelm(header: GGUFHeader, options: Options) -> Options:
    return {
        "use_qkv_bias": has_tensor(header, "attn_q.bias"),
        "use_parallel_residual": not has_tensor(header, "ffn_norm.weight"),
        "qk_layernorm": has_tensor(header, "attn_q_norm.weight"),
    }


def _falcon(header: GGUFHeader, options: Options) -> Options:
    two_norms, key_heads = has_tensor(header, "attn_norm_2.weight"), options["num_key_value_heads"]
    new = two_norms or key_heads not in (1, options["num_attention_heads"])
    return {
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "multi_query": key_heads == 1,
        "num_kv_heads": key_heads,
        "ffn_hidden_size": options["intermediate_size"],
        "parallel_attn": True,
        "alibi": False,
        "bias": has_tensor(header, "attn_qkv.bias"),
    }


def bias_option(name: str, tensor: str = "attn_q.bias") -> Callable[[GGUFHeader, Options], Options]:
    """Return a function for an option that says whether there is a bias."""
    return lambda header, options: {name: has_tensor(header, tensor)}


_LAYER_NORM = "layer_norm_eps"
_CAUSAL = {"attention.causal": "is_causal"}  # false in all files of these architectures
_BERT_NAMES = {
    "token_types": "token_types",
    "attention_post_norm": "blk.{i}.attn_output_norm",
    "mlp_post_norm": "blk.{i}.layer_output_norm",
    **dict.fromkeys(("attention_norm", "mlp_norm", "final_norm", "head")),
}
ARCHITECTURES: Mapping[str, Architecture] = {  # by the value of the key general.architecture
    "llama": Architecture("llama", {"hidden_act": "silu"}, llama_biases, interleaved=True),
    "qwen2": Architecture("qwen2", {"hidden_act": "silu", "use_sliding_window": False}),
    "qwen3": Architecture(
        "qwen3",
        {"hidden_act": "silu", "use_sliding_window": False},
        bias_option("attention_bias", "attn_output.bias"),
    ),
    "gemma": Architecture("gemma", {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}),
    "gemma2": Architecture(
        "gemma2",
        {
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        _gemma2,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        {
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": None,
            "final_logit_softcapping": None,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
        _gemma3,
    ),
    "smollm3": Architecture("smollm3", {"hidden_act": "silu"}, _smollm3, interleaved=True),
    "granite": Architecture(
        "granite",
        {
            "hidden_act": "silu",
            "attention_multiplier": 1.0,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
        },
        _granite,
        {
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
        interleaved=True,
    ),
    "olmo": Architecture(
        "olmo",
        {"hidden_act": "silu", "clip_qkv": None},
        interleaved=True,
        norm=_LAYER_NORM,
        names={"attention_norm": None, "mlp_norm": None, "final_norm": None},
    ),
    "olmo2": Architecture("olmo2", {"hidden_act": "silu"}),
    "phi2": Architecture("phi", {"hidden_act": "gelu_new"}, partial=True, norm=_LAYER_NORM),
    "phi3": Architecture("phi3", {"hidden_act": "silu", "sliding_window": None}, partial=True),
    "stablelm": Architecture(
        "stablelm",
        {"hidden_act": "silu"},
        _stablelm,
        {"use_parallel_residual": "use_parallel_residual"},  # not always right, so the tensors decide
        partial=True,
        norm=_LAYER_NORM,
    ),
    "gpt2": Architecture("gpt2", {"activation_function": "gelu_new"}, rotary=False, norm="layer_norm_epsilon"),
    "gptneox": Architecture(
        "gpt_neox", {"hidden_act": "gelu", "use_parallel_residual": True}, partial=True, norm=_LAYER_NORM
    ),
    "starcoder": Architecture(
        "gpt_bigcode",
        {"activation_function": "gelu_pytorch_tanh", "multi_query": True},
        rotary=False,
        norm="layer_norm_epsilon",
    ),
    "starcoder2": Architecture(
        "starcoder2",
        {"hidden_act": "gelu_pytorch_tanh", "sliding_window": None},
        bias_option("use_bias"),
        norm="norm_epsilon",
    ),
    "bloom": Architecture(
        "bloom",
        more=lambda header, options: {"seq_length": options["max_position_embeddings"]},
        rotary=False,
        norm="layer_norm_epsilon",
    ),
    "falcon": Architecture("falcon", {"activation": "gelu"}, _falcon, norm="layer_norm_epsilon"),
    "exaone4": Architecture("exaone4", {"hidden_act": "silu"}, _exaone4),
    "ernie4_5": Architecture("ernie4_5", {"hidden_act": "silu"}, bias_option("use_bias"), interleaved=True),
    "nemotron": Architecture(
        "nemotron", {"hidden_act": "relu2", "mlp_bias": False}, llama_biases, partial=True, norm="norm_eps"
    ),
    "command-r": Architecture(
        "cohere",
        {"hidden_act": "silu", "logit_scale": 1.0},
        lambda header, options: {
            "use_qk_norm": has_tensor(header, "attn_q_norm.weight"),
            "attention_bias": has_tensor(header, "attn_output.bias"),
        },
        interleaved=True,
        norm=_LAYER_NORM,
    ),
    "lfm2": Architecture(
        "lfm2",
        {"block_auto_adjust_ff_dim": False},
        lfm2_options,
        {"shortconv.l_cache": "conv_L_cache"},
        norm="norm_eps",
        names={"final_norm": "token_embd_norm"},
    ),
    "bert": Architecture(
        "bert", {"hidden_act": "gelu"}, _bert, _CAUSAL, rotary=False, norm=_LAYER_NORM, names=_BERT_NAMES
    ),
    "jina-bert-v2": Architecture(
        "bert",
        {"hidden_act": "gelu", "position_embedding_type": "alibi", "feed_forward_type": "geglu"},
        _bert,
        _CAUSAL,
        rotary=False,
        norm=_LAYER_NORM,
        names=_BERT_NAMES,
    ),
    "nomic-bert": Architecture(
        "nomic_bert", {"hidden_act": "silu"}, _bert, _CAUSAL, norm=_LAYER_NORM, names=_BERT_NAMES
    ),
}
