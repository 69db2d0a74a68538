"""Describes the decoder of a GGUF file: its metadata as the options of a ``config.json``, and its tensors' names.

The options are read by ``runtime.model.families``, so each family is described once. Here is only what GGUF files do
differently: names of keys and tensors, values that llama.cpp takes for granted (``llama-model.cpp`` and ``src/models``
there), and rearrangements by its converter (``conversion``): rows of queries and keys for interleaved rotation, joint
projections in blocks of all queries, keys and values, transposed matrices of GPT-2, and the 1 that is already part of
Gemma's norms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from runtime.errors import ModelUnavailable
from runtime.loading.encoder_folder import EncoderFolder
from runtime.loading.gguf_config import complete
from runtime.loading.gguf_encoders import HEAD_TENSORS, gguf_encoder
from runtime.model.checkpoint_layout import CheckpointLayout
from runtime.model.config import DecoderConfig, UnsupportedDecoder
from runtime.model.families import FAMILIES, read_config, read_encoder
from runtime.model.families.encoders import ENCODERS
from runtime.model.families.options import alternating
from runtime.model.gguf_header import GGUFHeader
from runtime.model.size_limits import check_sizes

_NAMES = {
    "embed": "token_embd",
    "positions": "position_embd",
    "embed_norm": "token_embd_norm",
    "attention_norm": "blk.{i}.attn_norm",
    "qkv": "blk.{i}.attn_qkv",
    "q": "blk.{i}.attn_q",
    "k": "blk.{i}.attn_k",
    "v": "blk.{i}.attn_v",
    "q_norm": "blk.{i}.attn_q_norm",
    "k_norm": "blk.{i}.attn_k_norm",
    "attention_out": "blk.{i}.attn_output",
    "conv_in": "blk.{i}.shortconv.in_proj",
    "conv": "blk.{i}.shortconv.conv",
    "conv_out": "blk.{i}.shortconv.out_proj",
    "attention_post_norm": "blk.{i}.post_attention_norm",
    "mlp_norm": "blk.{i}.ffn_norm",
    "gate": "blk.{i}.ffn_gate",
    "up": "blk.{i}.ffn_up",
    "down": "blk.{i}.ffn_down",
    "mlp_post_norm": "blk.{i}.post_ffw_norm",
    "final_norm": "output_norm",
    "head": "output",
}
_ROTARY = (r"rope_(?:freqs|factors_long|factors_short)\.weight$",)  # read into the configuration
# Options that the keys of most architectures give, besides those that ``complete`` reads.
_COMMON = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}

_Options = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How an architecture of GGUF files maps to a family.

    Args:
        family: the family's ``model_type``.
        options: options that are the same for all files, and defaults of those that ``complete`` sets from keys.
        more: returns further options, from the header and the options so far.
        keys: keys that give an option under another name, besides those of ``_COMMON``.
        interleaved: whether values 2i and 2i + 1 of a head are rotated together (llama.cpp's ``ROPE_TYPE_NORM``).
        partial: whether a part of each head may be rotated.
        norm: name of the option for the norms' epsilon.
        rotary: whether positions are rotary.
        names: tensors with names of their own, by part; None for parts without tensors.
    """

    family: str
    options: Mapping[str, Any] = field(default_factory=dict)
    more: Callable[[GGUFHeader, _Options], Mapping[str, Any]] = lambda header, options: {}
    keys: Mapping[str, str] = field(default_factory=dict)
    interleaved: bool = False
    partial: bool = False
    rotary: bool = True
    norm: str = "rms_norm_eps"
    names: Mapping[str, str | None] = field(default_factory=dict)


def read_gguf(header: GGUFHeader) -> tuple[DecoderConfig, CheckpointLayout, str, EncoderFolder | None]:
    """Describe the decoder or encoder of a GGUF file.

    Args:
        header: the file's header.

    Returns:
        The decoder, the arrangement of the file's tensors, the name of the model's class in transformers, and what it
        computes from a text, with the names of tensors, if it is an encoder.

    Raises:
        UnsupportedDecoder: the decoder does not support the model; the message names the unsupported key or value.
    """
    header = GGUFHeader(_rounded(header.metadata), header.tensors, header.alignment)
    architecture = ARCHITECTURES.get(header.architecture)
    if architecture is None or architecture.family not in ENCODERS:
        raise UnsupportedDecoder(f"GGUF architecture {header.architecture}")
    try:
        return _read(header, architecture)
    except ModelUnavailable as error:  # the file may still be one for the reference engine
        raise UnsupportedDecoder(str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise UnsupportedDecoder(f"incomplete GGUF metadata ({error!r})") from error


def _read(
    header: GGUFHeader, architecture: Architecture
) -> tuple[DecoderConfig, CheckpointLayout, str, EncoderFolder | None]:
    """Describe a file of a known architecture; result as for ``read_gguf``, errors as for ``_options``."""
    options = _options(header, architecture)
    if architecture.family in FAMILIES and not header.of_model("pooling_type", 0):
        config, layout = read_config(options)
        return config, _layout(header, architecture, layout.biases), FAMILIES[architecture.family].architecture, None
    config, layout = read_encoder(options)
    names = _layout(header, architecture, layout.biases)
    encoder = gguf_encoder(header, architecture.family, config)
    if encoder.tensors or encoder.logit_tokens:
        names = replace(names, ignored=(*names.ignored, *HEAD_TENSORS))
    return config, names, ENCODERS[architecture.family].architecture, encoder


def _rounded(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Replace float32 numbers by the shortest decimals that they stand for, such as 1e-06, as in a ``config.json``."""
    return {
        key: float(str(np.float32(value))) if isinstance(value, float) and np.float32(value) == value else value
        for key, value in metadata.items()
    }


def _options(header: GGUFHeader, architecture: Architecture) -> _Options:
    """Return a file's metadata as the options of a ``config.json``.

    Raises:
        ModelUnavailable: a key has a value that the family does not support.
        KeyError, TypeError, ValueError: a key is missing or is not a number.
    """
    options: _Options = {"model_type": architecture.family, architecture.norm: None, **architecture.options}
    keys = {**_COMMON, **architecture.keys}
    for key, name in keys.items():
        value = header.of_model(key)
        if value is not None:
            options[name] = _same(key, value)
        elif key in _COMMON:
            raise KeyError(f"{header.architecture}.{key}")
    check_sizes(options)
    heads, hidden = options["num_attention_heads"], options["hidden_size"]
    options["vocab_size"] = header.tensors["token_embd.weight"].shape[-1]
    options["tie_word_embeddings"] = "output.weight" not in header.tensors
    options["num_key_value_heads"] = _key_heads(header, heads)
    options["head_dim"] = header.of_model("attention.key_length") or hidden // heads
    if architecture.rotary:
        options.setdefault("rope_parameters", {"rope_theta": 10_000.0})
        if architecture.partial:
            options["rope_parameters"] = {**options["rope_parameters"], "partial_rotary_factor": 1.0}
    options |= architecture.more(header, options)
    config = SimpleNamespace(**_copied(options))
    complete(config, header, keys, whole=frozenset())
    options = vars(config)
    if options[architecture.norm] is None:
        raise KeyError(f"{header.architecture}.attention.layer_norm_rms_epsilon")
    return options


def _copied(options: _Options) -> _Options:
    """Return a copy of options that shares no dictionary with them, because ``complete`` changes them."""
    return {name: _copied(value) if isinstance(value, dict) else value for name, value in options.items()}


def _same(key: str, value: Any) -> Any:
    """Return a value that a file may give for each layer, if it is the same for all.

    Raises:
        ModelUnavailable: it is not.
    """
    if isinstance(value, np.ndarray):
        if value.size == 0 or (value != value[0]).any():
            raise ModelUnavailable(f"the GGUF file has different values of {key} for its layers: not supported")
        return value[0].item()
    return value


def _key_heads(header: GGUFHeader, heads: int) -> Any:
    """Return the number of key heads of the layers that have attention; as many as query heads if it is not given."""
    value = header.of_model("attention.head_count_kv", heads)
    if isinstance(value, np.ndarray):
        return _same("attention.head_count_kv", value[value > 0])
    return value


def _layout(header: GGUFHeader, architecture: Architecture, biases: frozenset[str] | None) -> CheckpointLayout:
    """Return the names and the arrangement of a file's tensors; of two ways to store a part, the one that it has.

    Args:
        header: the file's header.
        architecture: the file's architecture.
        biases: parts that have a bias in the family's checkpoints. A file may have more of them.
    """
    joint = _has(header, "attn_qkv.weight")
    left_out = {"q", "k", "v"} if joint else {"qkv"}
    names = {part: name for part, name in {**_NAMES, **architecture.names}.items() if part not in left_out and name}
    if _has(header, "attn_norm_2.weight"):  # Falcon; the other norm is then the MLP's
        names |= {"attention_norm": "blk.{i}.attn_norm_2", "mlp_norm": "blk.{i}.attn_norm"}
    if header.rows("blk.0.ffn_up.weight") == 2 * _same("feed_forward_length", header.of_model("feed_forward_length")):
        names["gate_up"] = names["up"]
    needed = set(biases or ())
    if needed & {"q", "k", "v", "qkv"}:
        needed |= {"qkv"} if joint else needed & {"q", "k", "v"} or {"q", "k", "v"}
    present = {part for part, name in names.items() if f"{name}.bias".replace("{i}", "0") in header.tensors}
    return CheckpointLayout(
        names,
        interleaved_rotation=architecture.interleaved,
        ignored=_ROTARY,
        biases=frozenset(names.keys() & (needed | present)),
    )


def _has(header: GGUFHeader, name: str) -> bool:
    return f"blk.0.{name}" in header.tensors


def _bert(header: GGUFHeader, options: _Options) -> _Options:
    """Return the sizes of the embeddings; of XLM-R's positions the file has only those that are used."""
    sizes = {"type_vocab_size": "token_types.weight", "max_position_embeddings": "position_embd.weight"}
    found = {name: header.rows(tensor) for name, tensor in sizes.items() if tensor in header.tensors}
    return {"type_vocab_size": 0, **found}


def _llama_biases(header: GGUFHeader, options: _Options) -> _Options:
    # A file may also have biases of the queries, keys and values alone.
    return {"attention_bias": _has(header, "attn_output.bias"), "mlp_bias": _has(header, "ffn_up.bias")}


def _granite(header: GGUFHeader, options: _Options) -> _Options:
    if not header.of_model("rope.scaling.finetuned", True):
        raise ModelUnavailable("the GGUF file has rope.scaling.finetuned=False, which is not supported for this model")
    return _llama_biases(header, options)


def _scalar_of_gemma(large: int) -> Callable[[GGUFHeader, _Options], _Options]:
    """Return a function for Gemma's scale of attention scores, which differs in the model with ``large`` layers."""

    def read(header: GGUFHeader, options: _Options) -> _Options:
        wide = options["num_hidden_layers"] == large
        width = options["hidden_size"] // options["num_attention_heads"] if wide else options["head_dim"]
        return {"query_pre_attn_scalar": width}

    return read


def _gemma2(header: GGUFHeader, options: _Options) -> _Options:
    return {**_scalar_of_gemma(46)(header, options), "layer_types": alternating(options, 2)}


def _gemma3(header: GGUFHeader, options: _Options) -> _Options:
    windowed = bool(header.of_model("attention.sliding_window"))
    count = options["num_hidden_layers"]
    return {
        **_scalar_of_gemma(62)(header, options),
        "layer_types": alternating(options, 6) if windowed else ["full_attention"] * count,
    }


def _smollm3(header: GGUFHeader, options: _Options) -> _Options:
    count = options["num_hidden_layers"]
    return {**_llama_biases(header, options), "no_rope_layers": [int((i + 1) % 4 != 0) for i in range(count)]}


def _exaone4(header: GGUFHeader, options: _Options) -> _Options:
    count = options["num_hidden_layers"]
    windowed = count == 64 or bool(header.of_model("attention.sliding_window"))  # as llama.cpp tells the 32B model
    if not windowed:
        return {"sliding_window": None, "layer_types": ["full_attention"] * count}
    return {"sliding_window": 4096, "sliding_window_pattern": "LLLG", "layer_types": alternating(options, 4)}


def _lfm2(header: GGUFHeader, options: _Options) -> _Options:
    heads = header.of_model("attention.head_count_kv")
    kinds = ["full_attention" if count else "conv" for count in np.asarray(heads).tolist()]
    return {"layer_types": kinds, "conv_bias": _has(header, "shortconv.conv.bias")}


def _stablelm(header: GGUFHeader, options: _Options) -> _Options:
    return {
        "use_qkv_bias": _has(header, "attn_q.bias"),
        "use_parallel_residual": not _has(header, "ffn_norm.weight"),
        "qk_layernorm": _has(header, "attn_q_norm.weight"),
    }


def _falcon(header: GGUFHeader, options: _Options) -> _Options:
    two_norms, key_heads = _has(header, "attn_norm_2.weight"), options["num_key_value_heads"]
    new = two_norms or key_heads not in (1, options["num_attention_heads"])
    return {
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "multi_query": key_heads == 1,
        "num_kv_heads": key_heads,
        "ffn_hidden_size": options["intermediate_size"],
        "parallel_attn": True,
        "alibi": False,
        "bias": _has(header, "attn_qkv.bias"),
    }


def _biases(name: str, tensor: str = "attn_q.bias") -> Callable[[GGUFHeader, _Options], _Options]:
    """Return a function for an option that says whether there is a bias."""
    return lambda header, options: {name: _has(header, tensor)}


_LAYER_NORM = "layer_norm_eps"
_CAUSAL = {"attention.causal": "is_causal"}  # false in all files of these architectures
_BERT_NAMES = {
    "token_types": "token_types",
    "attention_post_norm": "blk.{i}.attn_output_norm",
    "mlp_post_norm": "blk.{i}.layer_output_norm",
    **dict.fromkeys(("attention_norm", "mlp_norm", "final_norm", "head")),
}
ARCHITECTURES: Mapping[str, Architecture] = {  # by the value of the key general.architecture
    "llama": Architecture("llama", {"hidden_act": "silu"}, _llama_biases, interleaved=True),
    "qwen2": Architecture("qwen2", {"hidden_act": "silu", "use_sliding_window": False}),
    "qwen3": Architecture(
        "qwen3", {"hidden_act": "silu", "use_sliding_window": False}, _biases("attention_bias", "attn_output.bias")
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
        _biases("use_bias"),
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
    "ernie4_5": Architecture("ernie4_5", {"hidden_act": "silu"}, _biases("use_bias"), interleaved=True),
    "nemotron": Architecture(
        "nemotron", {"hidden_act": "relu2", "mlp_bias": False}, _llama_biases, partial=True, norm="norm_eps"
    ),
    "command-r": Architecture(
        "cohere",
        {"hidden_act": "silu", "logit_scale": 1.0},
        lambda header, options: {
            "use_qk_norm": _has(header, "attn_q_norm.weight"),
            "attention_bias": _has(header, "attn_output.bias"),
        },
        interleaved=True,
        norm=_LAYER_NORM,
    ),
    "lfm2": Architecture(
        "lfm2",
        {"block_auto_adjust_ff_dim": False},
        _lfm2,
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
