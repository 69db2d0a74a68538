"""Small random models of every family with mixtures of experts, as transformers makes them."""

from __future__ import annotations

from typing import Any

from tests.support.family_models import LFM2, MIXED, SMALL, TIED, UNTIED, WIDE, WINDOWS

MOE = {**SMALL, "moe_intermediate_size": 20, "num_experts_per_tok": 2}  # a width that is not a multiple of 16
MIXTRAL = {**SMALL, "num_local_experts": 4}
SIX, ROUTED = {"num_experts": 6}, {"n_routed_experts": 6}
FOUR = {"num_hidden_layers": 4}
SCALED = {"norm_topk_prob": True, "routed_scaling_factor": 1.7}
SPARSE = {"num_hidden_layers": 3, "mlp_layer_types": ["sparse", "dense", "sparse"]}

EXPERT_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", MIXTRAL),
    "mixtral with a window": (
        "Mixtral",
        {**MIXTRAL, **TIED, "sliding_window": 12, "head_dim": 20, "num_experts_per_tok": 3, "intermediate_size": 32},
    ),
    "qwen2_moe": ("Qwen2Moe", {**MOE, **SIX, "shared_expert_intermediate_size": 40}),
    "qwen2_moe with windows and MLPs": (
        "Qwen2Moe",
        {**MOE, **SIX, **TIED, **FOUR, "shared_expert_intermediate_size": 24, "norm_topk_prob": True}
        | {"qkv_bias": False, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3}
        | {"decoder_sparse_step": 2, "mlp_only_layers": [1]},
    ),
    "qwen3_moe": ("Qwen3Moe", {**MOE, **SIX, "norm_topk_prob": True}),
    "qwen3_moe with a window and MLPs": (
        "Qwen3Moe",
        {**MOE, **SIX, **TIED, **WIDE, "attention_bias": True, "use_sliding_window": True, "sliding_window": 9}
        | {"mlp_only_layers": [0]},
    ),
    "qwen3_moe, all experts": ("Qwen3Moe", {**MOE, "num_experts": 2}),
    "qwen3_moe without experts": ("Qwen3Moe", {**MOE, **SIX, "mlp_only_layers": [0, 1]}),
    "olmoe": ("Olmoe", {**SMALL, **SIX, "num_experts_per_tok": 3}),
    "olmoe with biases": (
        "Olmoe",
        {**SMALL, **SIX, **TIED, "attention_bias": True, "norm_topk_prob": True} | {"num_experts_per_tok": 3},
    ),
    "flex_olmo": ("FlexOlmo", {**SMALL, **SIX, "num_experts_per_tok": 3}),
    "flex_olmo with biases": ("FlexOlmo", {**SMALL, **SIX, **TIED, "attention_bias": True, "norm_topk_prob": True}),
    "granitemoe": (
        "GraniteMoe",
        {**MIXTRAL, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.1}
        | {"logits_scaling": 5.0},
    ),
    "granitemoe, tied and with biases": (
        "GraniteMoe",
        {**MIXTRAL, **TIED, "attention_bias": True, "attention_multiplier": 0.3, "num_experts_per_tok": 3},
    ),
    "granitemoeshared": (
        "GraniteMoeShared",
        {**MIXTRAL, "attention_multiplier": 0.3, "shared_intermediate_size": 40, "residual_multiplier": 0.4},
    ),
    "granitemoeshared without a shared expert": ("GraniteMoeShared", {**MIXTRAL, **TIED, "attention_multiplier": 0.3}),
    "lfm2_moe": ("Lfm2Moe", {**LFM2, **MOE, **SIX, **FOUR}),
    "lfm2_moe with biases": (
        "Lfm2Moe",
        {**LFM2, **MOE, **SIX, **FOUR, **UNTIED, "conv_bias": True, "conv_L_cache": 4, "num_dense_layers": 0}
        | {"use_expert_bias": False, "norm_topk_prob": False, "routed_scaling_factor": 1.7},
    ),
    "ernie4_5_moe": ("Ernie4_5_Moe", {**MOE, "moe_num_experts": 6, "moe_k": 3}),
    "ernie4_5_moe with biases": (
        "Ernie4_5_Moe",
        {**MOE, **UNTIED, **FOUR, "moe_num_experts": 6, "moe_k": 2, "use_bias": True, "moe_num_shared_experts": 3}
        | {"moe_layer_start_index": 0, "moe_layer_end_index": 2, "moe_layer_interval": 2},
    ),
    "ernie4_5_moe, tied and with biases": (
        "Ernie4_5_Moe",
        {**MOE, "moe_num_experts": 6, "moe_k": 2, "use_bias": True, "moe_num_shared_experts": 0},
    ),
    "mellum": ("Mellum", {**MOE, **SIX, **WIDE, **WINDOWS}),
    "mellum with MLPs": (
        "Mellum",
        {**MOE, **SIX, **TIED, **WINDOWS, **SPARSE, "head_dim": 12, "attention_bias": True, "norm_topk_prob": False},
    ),
    "dots1": ("Dots1", {**MOE, **ROUTED, **SCALED, "n_shared_experts": 2, "first_k_dense_replace": 1}),
    "dots1 with a window": (
        "Dots1",
        {**MOE, **ROUTED, **TIED, **WIDE, "n_shared_experts": 1, "attention_bias": True, "sliding_window": 9}
        | {"max_window_layers": 1, "n_group": 2, "topk_group": 2},
    ),
    "glm4_moe": ("Glm4Moe", {**MOE, **ROUTED, **SCALED, **WIDE}),
    "glm4_moe with norms of queries and keys": (
        "Glm4Moe",
        {**MOE, **ROUTED, **TIED, "use_qk_norm": True, "attention_bias": True, "first_k_dense_replace": 0}
        | {"n_shared_experts": 2, "norm_topk_prob": False},
    ),
    "solar_open": ("SolarOpen", {**MOE, **ROUTED, **SCALED, **WIDE}),
    "solar_open with biases": ("SolarOpen", {**MOE, **ROUTED, **TIED, "head_dim": 12, "attention_bias": True}),
    "exaone_moe": ("ExaoneMoe", {**MOE, **SIX, **WINDOWS}),
    "exaone_moe without a window": (
        "ExaoneMoe",
        {**MOE, **SIX, **TIED, **SPARSE, "layer_types": MIXED[1:2] * 3}
        | {"num_shared_experts": 2, "norm_topk_prob": False},
    ),
    "minimax_m2": ("MiniMaxM2", {**MIXTRAL, **WIDE, "num_experts_per_tok": 2}),
    "minimax_m2 with partial rotation": (
        "MiniMaxM2",
        {**MIXTRAL, **TIED, **WIDE, "rotary_dim": 8, "num_experts_per_tok": 3},
    ),
    "hy_v3": ("HYV3", {**MOE, **SIX, **WIDE}),
    "hy_v3 with biases": (
        "HYV3",
        {**MOE, **SIX, **TIED, **SPARSE, **WIDE, "attention_bias": True, "num_shared_experts": 2},
    ),
}
