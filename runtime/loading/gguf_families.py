"""Describes the decoder of a GGUF file: its metadata as the options of a ``config.json``, and its tensors' names.

The options are read by ``runtime.model.families``, so each family is described once. Here is only what GGUF files do
differently: names of keys and tensors, and rearrangements by llama.cpp's converter (``conversion``): rows of queries
and keys for interleaved rotation, joint projections in blocks of all queries, keys and values, transposed matrices of
GPT-2, and the 1 that is already part of Gemma's norms. ``gguf_architectures`` has what each architecture does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from runtime.errors import ModelUnavailable
from runtime.loading.encoder_folder import EncoderFolder
from runtime.loading.gguf_architectures import Architecture, Options, has_tensor
from runtime.loading.gguf_config import complete, unsupported
from runtime.loading.gguf_encoders import HEAD_TENSORS, gguf_encoder
from runtime.loading.gguf_experts import EXPERT_NAMES, architecture_of, check_experts
from runtime.model.checkpoint_layout import CheckpointLayout
from runtime.model.config import DecoderConfig, UnsupportedDecoder
from runtime.model.families import FAMILIES, read_config, read_encoder
from runtime.model.families.encoders import ENCODERS
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
    **EXPERT_NAMES,
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
    architecture = architecture_of(header)
    if architecture is None or architecture.family not in ENCODERS:
        count = header.of_model("expert_count", 0)
        with_experts = f" with expert_count={count}" if count else ""
        raise UnsupportedDecoder(f"GGUF architecture {header.architecture}{with_experts}")
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


def _options(header: GGUFHeader, architecture: Architecture) -> Options:
    """Return a file's metadata as the options of a ``config.json``.

    Raises:
        ModelUnavailable: a key has a value that the family does not support.
        KeyError, TypeError, ValueError: a key is missing or is not a number.
    """
    options: Options = {"model_type": architecture.family, architecture.norm: None, **architecture.options}
    keys = {**_COMMON, **architecture.keys}
    for key, name in keys.items():
        value = header.of_model(key)
        if value is not None:
            options[name] = _same(key, value)
        elif key in _COMMON:
            raise KeyError(f"{header.architecture}.{key}")
    for key, values in architecture.allowed.items():
        if header.of_model(key, values[0]) not in values:
            raise unsupported(key, header.of_model(key))
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
    check_experts(header, architecture, options)
    config = SimpleNamespace(**_copied(options))
    complete(config, header, {*keys, *architecture.allowed}, whole=frozenset())
    options = vars(config)
    if options[architecture.norm] is None:
        raise KeyError(f"{header.architecture}.attention.layer_norm_rms_epsilon")
    return options


def _copied(options: Options) -> Options:
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
    joint = has_tensor(header, "attn_qkv.weight")
    left_out = {"q", "k", "v"} if joint else {"qkv"}
    names = {part: name for part, name in {**_NAMES, **architecture.names}.items() if part not in left_out and name}
    if has_tensor(header, "attn_norm_2.weight"):  # Falcon; the other norm is then the MLP's
        names |= {"attention_norm": "blk.{i}.attn_norm_2", "mlp_norm": "blk.{i}.attn_norm"}
    inner = _same("feed_forward_length", header.of_model("feed_forward_length"))
    if has_tensor(header, "ffn_up.weight") and header.rows("blk.0.ffn_up.weight") == 2 * inner:
        names["gate_up"] = names["up"]
    needed = set(biases or ())
    if needed & {"q", "k", "v", "qkv"}:
        needed |= {"qkv"} if joint else needed & {"q", "k", "v"} or {"q", "k", "v"}
    present = {part for part, name in names.items() if f"{name}.bias".replace("{i}", "0") in header.tensors}
    return CheckpointLayout(
        names,
        plain=frozenset({"router_correction"}),
        interleaved_rotation=architecture.interleaved,
        ignored=_ROTARY,
        biases=frozenset(names.keys() & (needed | present)),
    )
