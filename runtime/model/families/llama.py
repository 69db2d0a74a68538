"""Llama and the families that differ from it by a few options: RMSNorm before, rotary positions, mostly a gated MLP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from runtime.model.checkpoint_layout import CheckpointLayout
from runtime.model.config import DecoderConfig, LayerConfig
from runtime.model.families.family import Description, Family
from runtime.model.families.options import Options, activation, decoder, one_rotation, windows

NAMES = {
    "embed": "embed_tokens",
    "attention_norm": "layers.{i}.input_layernorm",
    "q": "layers.{i}.self_attn.q_proj",
    "k": "layers.{i}.self_attn.k_proj",
    "v": "layers.{i}.self_attn.v_proj",
    "q_norm": "layers.{i}.self_attn.q_norm",
    "k_norm": "layers.{i}.self_attn.k_norm",
    "attention_out": "layers.{i}.self_attn.o_proj",
    "mlp_norm": "layers.{i}.post_attention_layernorm",
    "gate": "layers.{i}.mlp.gate_proj",
    "up": "layers.{i}.mlp.up_proj",
    "down": "layers.{i}.mlp.down_proj",
    "final_norm": "norm",
    "head": "lm_head",
}
"""Names of the tensors in Llama's checkpoints, without the prefix of the base model."""

QKV, OUT, MLP = ("q", "k", "v"), ("attention_out",), ("gate", "up", "down")
_INVERSE_FREQUENCIES = (r".*rotary_emb\.inv_freq$",)  # saved by older versions of transformers


def layout(names: Mapping[str, str] | None = None, *, biases: Iterable[str] = (), **fields: Any) -> CheckpointLayout:
    """Return a layout of checkpoints that are named as Llama's, with some differences.

    Args:
        names: names of parts that differ from ``NAMES``.
        biases: the parts that have a bias.
        fields: further fields of ``CheckpointLayout``.
    """
    common = {"prefixes": ("model.",), "ignored": _INVERSE_FREQUENCIES}
    return CheckpointLayout(**{"names": {**NAMES, **(names or {})}, "biases": frozenset(biases), **common, **fields})


def optional_biases(options: Options, **parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the parts that have a bias, given the parts for which each option switches them on."""
    return tuple(part for option, names in parts.items() if options.get(option) for part in names)


def rms_decoder(options: Options, **fields: Any) -> DecoderConfig:
    """Return a decoder with what this module's families have in common. Arguments as for ``decoder``."""
    common = {"norm": "rms", "norm_epsilon": options["rms_norm_eps"], "gated": True}
    if "activation" not in fields:
        common["activation"] = activation(options["hidden_act"])
    return decoder(options, **{**common, **fields})


def _llama(options: Options) -> Description:
    biases = optional_biases(options, attention_bias=QKV + OUT, mlp_bias=MLP)
    return rms_decoder(options, rotations=(one_rotation(options),)), layout(biases=biases)


def _mistral(options: Options) -> Description:
    """Read Mistral, with the same window in all layers if any, or Ministral, in whose configuration layers differ."""
    given = [options.get("sliding_window") or 0] * options["num_hidden_layers"]
    if options["model_type"] == "ministral" and options.get("layer_types"):
        given = windows(options)
    return rms_decoder(options, windows=given, rotations=(one_rotation(options),)), layout()


def _qwen(options: Options) -> Description:
    """Read Qwen 2 (biases) or Qwen 3 (norms of queries and keys)."""
    count, first = options["num_hidden_layers"], options["max_window_layers"]
    sliding = options.get("sliding_window") if options.get("use_sliding_window") else None
    types = ["sliding_attention" if sliding and i >= first else "full_attention" for i in range(count)]
    given = windows({**options, "sliding_window": sliding}, types)
    if options["model_type"] == "qwen2":
        return rms_decoder(options, windows=given, rotations=(one_rotation(options),)), layout(biases=QKV)
    config = rms_decoder(options, windows=given, rotations=(one_rotation(options),), qk_norm="head")
    return config, layout(biases=optional_biases(options, attention_bias=QKV + OUT))


def _smollm3(options: Options) -> Description:
    count, interval = options["num_hidden_layers"], options["no_rope_layer_interval"]
    rotated = options.get("no_rope_layers") or [(i + 1) % interval != 0 for i in range(count)]  # 1: with rotation
    sliding = options.get("use_sliding_window") and options.get("sliding_window")
    types = ["full_attention" if with_rotation or not sliding else "sliding_attention" for with_rotation in rotated]
    config = rms_decoder(
        options,
        windows=windows(options, types),
        rotated=rotated[:count],
        rotations=(one_rotation(options, theta=2e6),),
    )
    return config, layout(biases=optional_biases(options, attention_bias=QKV + OUT, mlp_bias=MLP))


def granite_decoder(options: Options) -> DecoderConfig:
    """Return a decoder with Granite's multipliers."""
    return rms_decoder(
        options,
        rotations=(one_rotation(options),),
        attention_scale=float(options["attention_multiplier"]),
        embedding_scale=float(options["embedding_multiplier"]),
        residual_scale=float(options["residual_multiplier"]),
        logit_scale=1 / options["logits_scaling"],
    )


def _granite(options: Options) -> Description:
    biases = optional_biases(options, attention_bias=QKV + OUT, mlp_bias=MLP)
    return granite_decoder(options), layout(biases=biases)


def _helium(options: Options) -> Description:
    config = rms_decoder(options, rotations=(one_rotation(options, theta=1e5),))
    biases = optional_biases(options, attention_bias=QKV, mlp_bias=MLP)
    return config, layout(biases=biases, interleaved_rotation=True)


def _arcee(options: Options) -> Description:
    config = rms_decoder(options, rotations=(one_rotation(options),), gated=False)
    return config, layout(biases=optional_biases(options, attention_bias=QKV + OUT, mlp_bias=("up", "down")))


def _seed_oss(options: Options) -> Description:
    biases = optional_biases(options, attention_bias=QKV, attention_out_bias=OUT, mlp_bias=MLP)
    return rms_decoder(options, rotations=(one_rotation(options),)), layout(biases=biases)


def _ernie(options: Options) -> Description:
    config = rms_decoder(options, rotations=(one_rotation(options, theta=5e5),))
    return config, layout(biases=optional_biases(options, use_bias=QKV + OUT + MLP), interleaved_rotation=True)


def _phi3(options: Options) -> Description:
    rope = options.get("rope_scaling") or options.get("rope_parameters") or {}
    if (rope.get("rope_type") or rope.get("type")) in ("su", "yarn"):  # names of LongRoPE in older files
        options = {**options, "rope_scaling": {**rope, "rope_type": "longrope"}}
    count = options["num_hidden_layers"]
    window = [options.get("sliding_window") or 0] * count
    names = {"qkv": "layers.{i}.self_attn.qkv_proj", "gate_up": "layers.{i}.mlp.gate_up_proj"}
    return rms_decoder(options, windows=window, rotations=(one_rotation(options, part=1.0),)), layout(names)


def _glm(options: Options) -> Description:
    """Read GLM or GLM-4, which also normalizes the outputs."""
    names = {"gate_up": "layers.{i}.mlp.gate_up_proj"}
    post = options["model_type"] == "glm4"
    if post:
        names |= {
            "attention_post_norm": "layers.{i}.post_self_attn_layernorm",
            "mlp_post_norm": "layers.{i}.post_mlp_layernorm",
        }
    config = rms_decoder(options, rotations=(one_rotation(options, part=0.5),), post_norm=post)
    return config, layout(names, biases=optional_biases(options, attention_bias=QKV), interleaved_rotation=True)


def lfm2(options: Options) -> Description:
    """Read LFM2, which has layers with a convolution instead of attention."""
    count = options["num_hidden_layers"]
    attention = options.get("full_attn_idxs")
    attention = range(count) if attention is None else attention
    types = options.get("layer_types") or ["full_attention" if i in attention else "conv" for i in range(count)]
    if len(types) != count or set(types) - {"full_attention", "conv"}:
        raise ValueError(f"layer types {types}")
    inner = options["intermediate_size"]
    if options["block_auto_adjust_ff_dim"]:
        inner = int(2 * inner / 3)
        if options.get("block_ffn_dim_multiplier") is not None:
            multiple = options["block_multiple_of"]
            inner = -(-int(options["block_ffn_dim_multiplier"] * inner) // multiple) * multiple
    config = rms_decoder(
        options,
        intermediate=inner,
        activation="silu",
        rotations=(one_rotation(options, theta=1e6),),
        qk_norm="head",
        convolution_width=options["conv_L_cache"] if "conv" in types else 0,
    )
    layers = [
        layer if kind != "conv" else LayerConfig("convolution")
        for layer, kind in zip(config.layers, types, strict=True)
    ]
    names = {
        "attention_norm": "layers.{i}.operator_norm",
        "q_norm": "layers.{i}.self_attn.q_layernorm",
        "k_norm": "layers.{i}.self_attn.k_layernorm",
        "attention_out": "layers.{i}.self_attn.out_proj",
        "conv_in": "layers.{i}.conv.in_proj",
        "conv": "layers.{i}.conv.conv",
        "conv_out": "layers.{i}.conv.out_proj",
        "mlp_norm": "layers.{i}.ffn_norm",
        "gate": "layers.{i}.feed_forward.w1",
        "up": "layers.{i}.feed_forward.w3",
        "down": "layers.{i}.feed_forward.w2",
        "final_norm": "embedding_norm",
    }
    biases = optional_biases(options, conv_bias=("conv_in", "conv", "conv_out"))
    return replace(config, layers=tuple(layers)), layout(names, biases=biases)


_DEFAULTS = {"rms_norm_eps": 1e-6, "hidden_act": "silu"}
_MISTRAL = {**_DEFAULTS, "num_key_value_heads": 8, "sliding_window": 4096, "eos_token_id": 2}
_QWEN = {**_DEFAULTS, "sliding_window": 4096, "max_window_layers": 28}
_GLM = {
    "hidden_act": "silu",
    "rms_norm_eps": 1.5625e-7,
    "attention_bias": True,
    "head_dim": 128,
    "num_key_value_heads": 2,
    "eos_token_id": [151329, 151336, 151338],
}

LLAMA = {
    "llama": Family("LlamaForCausalLM", _llama, {**_DEFAULTS, "eos_token_id": 2}),
    "mistral": Family("MistralForCausalLM", _mistral, _MISTRAL),
    "ministral": Family("MinistralForCausalLM", _mistral, _MISTRAL),
    "qwen2": Family("Qwen2ForCausalLM", _qwen, {**_QWEN, "num_key_value_heads": 32}),
    "qwen3": Family("Qwen3ForCausalLM", _qwen, {**_QWEN, "num_key_value_heads": 32, "head_dim": 128}),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        _smollm3,
        {
            **_DEFAULTS,
            "num_key_value_heads": 4,
            "no_rope_layer_interval": 4,
            "tie_word_embeddings": True,
            "eos_token_id": 128001,
        },
    ),
    "granite": Family(
        "GraniteForCausalLM",
        _granite,
        {
            **_DEFAULTS,
            "attention_multiplier": 1.0,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
            "eos_token_id": 2,
        },
    ),
    "helium": Family(
        "HeliumForCausalLM",
        _helium,
        {"rms_norm_eps": 1e-8, "hidden_act": "silu", "head_dim": 128, "num_key_value_heads": 20, "eos_token_id": 2},
    ),
    "arcee": Family("ArceeForCausalLM", _arcee, {"rms_norm_eps": 1e-5, "hidden_act": "relu2", "eos_token_id": 128001}),
    "seed_oss": Family(
        "SeedOssForCausalLM",
        _seed_oss,
        {**_DEFAULTS, "attention_bias": True, "head_dim": 128, "num_key_value_heads": 8, "eos_token_id": 2},
    ),
    "ernie4_5": Family(
        "Ernie4_5ForCausalLM",
        _ernie,
        {
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "head_dim": 128,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "eos_token_id": 2,
        },
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        _phi3,
        {"rms_norm_eps": 1e-5, "hidden_act": "silu", "original_max_position_embeddings": 4096}
        | {"eos_token_id": 32000},
    ),
    "glm": Family("GlmForCausalLM", _glm, _GLM),
    "glm4": Family("Glm4ForCausalLM", _glm, _GLM),
    "lfm2": Family(
        "Lfm2ForCausalLM",
        lfm2,
        {
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "conv_L_cache": 3,
            "block_multiple_of": 256,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": True,
            "tie_word_embeddings": True,
            "eos_token_id": 2,
        },
        {"norm_eps": "rms_norm_eps", "tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size"},
    ),
}
