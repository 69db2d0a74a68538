"""Small random models of every family of the fast engine, as transformers makes them."""

from __future__ import annotations

from typing import Any

import torch
import transformers

SMALL = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 72,  # not a multiple of 16
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}
GPT2 = {"vocab_size": 101, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 96}
NO_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
WINDOWS = {"sliding_window": 12, "layer_types": MIXED, "num_hidden_layers": 3}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
BIASES = {"attention_bias": True, "mlp_bias": True}
WIDE = {"head_dim": 16}  # wider than the residual stream
FALCON = {**SMALL, "num_key_value_heads": None, "num_kv_heads": 2, "ffn_hidden_size": 72}
LFM2 = {**SMALL, "num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 4 for i in range(6)],
    "original_max_position_embeddings": 24,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**SMALL, **WIDE}),
    "llama, tied and with biases": ("Llama", {**SMALL, **TIED, **BIASES}),
    "llama 3.1": ("Llama", {**SMALL, **WIDE, "rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {**SMALL, "sliding_window": None}),
    "mistral with a window": ("Mistral", {**SMALL, "sliding_window": 12, "head_dim": 20}),
    "ministral": ("Ministral", {**SMALL, **WIDE, **WINDOWS}),
    "qwen2": ("Qwen2", SMALL),
    "qwen2 with a window": ("Qwen2", {**SMALL, **TIED, **WINDOWS, "use_sliding_window": True}),
    "qwen3": ("Qwen3", {**SMALL, **WIDE, **TIED}),
    "qwen3 with a window": (
        "Qwen3",
        {**SMALL, "head_dim": 24, "attention_bias": True, "use_sliding_window": True, "sliding_window": 9}
        | {"max_window_layers": 1},
    ),
    "gemma": ("Gemma", {**SMALL, **WIDE, "hidden_act": "gelu"}),
    "gemma, untied": ("Gemma", {**SMALL, "head_dim": 12, **UNTIED, "attention_bias": True}),
    "gemma2": (
        "Gemma2",
        {**SMALL, **WIDE, "num_hidden_layers": 3, "sliding_window": 12, "query_pre_attn_scalar": 20}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma2 without caps": (
        "Gemma2",
        {**SMALL, **WIDE, **UNTIED, "attn_logit_softcapping": None, "final_logit_softcapping": None}
        | {"attention_bias": True},
    ),
    "gemma3": (
        "Gemma3Text",
        {**SMALL, **WIDE, "num_hidden_layers": 3, "sliding_window": 12, "layer_types": MIXED}
        | {"query_pre_attn_scalar": 20, "final_logit_softcapping": 3.0},
    ),
    "gemma3 with scaled positions": (
        "Gemma3Text",
        {**SMALL, "head_dim": 20, "num_hidden_layers": 6, "sliding_window": 12, "attention_bias": True}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ),
    "smollm3": ("SmolLM3", {**SMALL, **TIED, "num_hidden_layers": 4}),
    "smollm3 with a window": (
        "SmolLM3",
        {**SMALL, **BIASES, **UNTIED, "no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 12},
    ),
    "granite": (
        "Granite",
        {**SMALL, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.1}
        | {"logits_scaling": 5.0},
    ),
    "granite, tied and with biases": ("Granite", {**SMALL, **TIED, **BIASES, "attention_multiplier": 0.3}),
    "olmo": ("Olmo", SMALL),
    "olmo with biases": ("Olmo", {**SMALL, **TIED, "attention_bias": True}),
    "olmo2": ("Olmo2", SMALL),
    "olmo2 with biases": ("Olmo2", {**SMALL, **TIED, "attention_bias": True}),
    "olmo3": ("Olmo3", {**SMALL, **WINDOWS}),
    "phi": ("Phi", SMALL),
    "phi with norms of queries and keys": ("Phi", {**SMALL, "qk_layernorm": True, "partial_rotary_factor": 1 / 3}),
    "phi3": ("Phi3", {**SMALL, "sliding_window": 12}),
    "phi3 with scaled positions": (
        "Phi3",
        {**SMALL, **TIED, "rope_parameters": {**LONG, "long_factor": LONG["short_factor"]}}
        | {"original_max_position_embeddings": 24},
    ),
    "phi3 with other rotations in long texts": (
        "Phi3",
        {**SMALL, "rope_parameters": {**LONG, "long_factor": [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]}}
        | {"original_max_position_embeddings": 24},
    ),
    "phi3 within the trained length": (
        "Phi3",
        {**SMALL, "rope_parameters": {**LONG, "short_factor": [2.0] * 4, "long_factor": [3.0] * 4}}
        | {"original_max_position_embeddings": 96, "partial_rotary_factor": 0.7},
    ),
    "stablelm": ("StableLm", {**SMALL, "use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "stablelm, parallel": (
        "StableLm",
        {**SMALL, **TIED, "use_parallel_residual": True, "qk_layernorm": True, "partial_rotary_factor": 0.5},
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2, untied": ("GPT2", {**GPT2, **UNTIED, "n_inner": 80}),
    "gpt_neox": ("GPTNeoX", {**SMALL, "rotary_pct": 0.5}),
    "gpt_neox, in sequence": (
        "GPTNeoX",
        {**SMALL, **TIED, "rotary_pct": 1.0, "use_parallel_residual": False, "attention_bias": False},
    ),
    "gpt_neo": (
        "GPTNeo",
        {"vocab_size": 101, "hidden_size": 48, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 96}
        | {"attention_types": [[["global", "local"], 1]], "window_size": 9},
    ),
    "gptj": ("GPTJ", {**GPT2, "rotary_dim": 8}),
    "gpt_bigcode": ("GPTBigCode", GPT2),
    "gpt_bigcode with many key heads": ("GPTBigCode", {**GPT2, **UNTIED, "multi_query": False, "n_inner": 72}),
    "starcoder2": ("Starcoder2", {**SMALL, "sliding_window": 12}),
    "starcoder2 without biases": ("Starcoder2", {**SMALL, **UNTIED, "use_bias": False}),
    "opt": ("OPT", {**SMALL, "ffn_dim": 72}),
    "opt without biases": (
        "OPT",
        {**SMALL, **UNTIED, "ffn_dim": 72, "enable_bias": False, "layer_norm_elementwise_affine": False},
    ),
    "bloom": ("Bloom", {"vocab_size": 101, "hidden_size": 48, "n_layer": 2, "n_head": 6}),
    "bloom, untied": ("Bloom", {"vocab_size": 101, "hidden_size": 48, "n_layer": 2, "n_head": 4, **UNTIED}),
    "falcon": ("Falcon", FALCON),
    "falcon with two norms": ("Falcon", {**FALCON, **UNTIED, "new_decoder_architecture": True}),
    "falcon with one norm": (
        "Falcon",
        {**FALCON, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1, "bias": True},
    ),
    "falcon, in sequence": (
        "Falcon",
        {**FALCON, "num_kv_heads": None, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "exaone4": ("Exaone4", {**SMALL, **WINDOWS}),
    "exaone4 without a window": ("Exaone4", {**SMALL, **TIED, "sliding_window": None, "layer_types": MIXED[1:2] * 2}),
    "ernie4_5": ("Ernie4_5", {**SMALL, **WIDE}),
    "ernie4_5 with biases": ("Ernie4_5", {**SMALL, "head_dim": 12, **UNTIED, "use_bias": True}),
    "nemotron": ("Nemotron", SMALL),
    "nemotron with biases": ("Nemotron", {**SMALL, **TIED, **BIASES, **WIDE}),
    "cohere": ("Cohere", {**SMALL, "logit_scale": 0.3}),
    "cohere with norms of queries and keys": (
        "Cohere",
        {**SMALL, **UNTIED, "use_qk_norm": True, "attention_bias": True, "logit_scale": 0.3},
    ),
    "cohere2": ("Cohere2", {**SMALL, **WINDOWS, "logit_scale": 0.3}),
    "lfm2": ("Lfm2", {**LFM2, "block_auto_adjust_ff_dim": False}),
    "lfm2 with biases": (
        "Lfm2",
        {**LFM2, **UNTIED, "conv_bias": True, "conv_L_cache": 4, "block_multiple_of": 20, "intermediate_size": 100},
    ),
    "glm": ("Glm", {**SMALL, **WIDE}),
    "glm4": ("Glm4", {**SMALL, "head_dim": 12, **TIED, "attention_bias": False}),
    "helium": ("Helium", {**SMALL, "head_dim": 12, **BIASES}),
    "arcee": ("Arcee", SMALL),
    "arcee with biases": ("Arcee", {**SMALL, **TIED, **BIASES}),
    "seed_oss": ("SeedOss", {**SMALL, **WIDE}),
    "seed_oss with biases": ("SeedOss", {**SMALL, **WIDE, **TIED, "attention_out_bias": True, "mlp_bias": True}),
}


def random_model(family: str, options: dict[str, Any]) -> Any:
    """A model of transformers whose parameters are all random, also those that begin as zeros or ones."""
    config = getattr(transformers, f"{family}Config")(**{**NO_TOKENS, **options})
    return with_random_parameters(
        transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    )


def with_random_parameters(model: Any) -> Any:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith(("expert_bias", "correction_bias")):
                buffer.copy_(torch.randn_like(buffer) * 0.2)
    return model.eval()
