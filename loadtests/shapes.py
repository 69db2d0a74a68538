"""The shapes of well-known models, each as the content of its ``config.json``, for measurements with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LLAMA: dict[str, Any] = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 2048}

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "SmolLM2-135M": _LLAMA
    | {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
    },
    "Llama-3.2-1B": _LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "gemma-3-270m": {
        "model_type": "gemma3_text",
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 262_144,
        "sliding_window": 512,
        "query_pre_attn_scalar": 256,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "distilgpt2": {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 6,
        "n_head": 12,
        "n_positions": 1024,
        "vocab_size": 50_257,
        "tie_word_embeddings": True,
    },
    "pythia-410m": {
        "model_type": "gpt_neox",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "rotary_pct": 0.25,
        "max_position_embeddings": 2048,
        "vocab_size": 50_304,
    },
    "OLMo-2-0425-1B": {
        "model_type": "olmo2",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 2048,
        "vocab_size": 100_352,
    },
    "bloom-560m": {
        "model_type": "bloom",
        "hidden_size": 1024,
        "n_layer": 24,
        "n_head": 16,
        "vocab_size": 250_880,
        "tie_word_embeddings": True,
    },
    "opt-125m": {
        "model_type": "opt",
        "hidden_size": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
        "vocab_size": 50_272,
        "word_embed_proj_dim": 768,
        "tie_word_embeddings": True,
    },
    "LFM2-350M": {
        "model_type": "lfm2",
        "hidden_size": 1024,
        "intermediate_size": 6656,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "conv_L_cache": 3,
        "full_attn_idxs": [2, 5, 8, 10, 12, 14],
        "max_position_embeddings": 2048,
        "vocab_size": 65_536,
    },
    "OLMoE-1B-7B": {
        "model_type": "olmoe",
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 2048,
        "vocab_size": 50_304,
    },
    "Qwen1.5-MoE-A2.7B": {
        "model_type": "qwen2_moe",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 2048,
        "vocab_size": 151_936,
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 2048,
        "vocab_size": 151_936,
    },
    "granite-3.1-1b-a400m": {
        "model_type": "granitemoe",
        "hidden_size": 1024,
        "intermediate_size": 512,
        "num_local_experts": 32,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
        "vocab_size": 49_155,
        "tie_word_embeddings": True,
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "logits_scaling": 6.0,
    },
}

LARGE = frozenset({"Qwen3-30B-A3B"})
"""Shapes that have some thirty gigabytes of int8 weights, more than many machines have memory; fewer layers fit."""


def with_layers(shape: Mapping[str, Any], layers: int | None) -> Mapping[str, Any]:
    """Return a shape with fewer layers.

    Args:
        shape: one of ``SHAPES``.
        layers: the number of layers; None for all.

    Raises:
        ValueError: the number is not from 1 to that of the shape, or the shape describes its layers one by one.
    """
    if layers is None:
        return shape
    name = "num_hidden_layers" if "num_hidden_layers" in shape else "n_layer"
    if not 1 <= layers <= shape[name]:
        raise ValueError(f"layers is {layers}; this shape has from 1 to {shape[name]}")
    if "full_attn_idxs" in shape:
        raise ValueError("layers: this shape describes its layers one by one")
    return {**shape, name: layers}
