"""Families with mixtures of experts whose routers compute scores by sigmoids, as DeepSeek-V3's (arXiv:2412.19437).

Experts are chosen by the score and a correction. transformers adds 1e-20 to the sum by which the weights are divided
(LFM2: see there); this is left out, as it changes no float unless all scores are below 1e-13.
"""

from __future__ import annotations

from dataclasses import replace

from runtime.model.config import ExpertsConfig, UnsupportedDecoder
from runtime.model.families.experts import expert_layout, sparse_layers, with_experts
from runtime.model.families.family import Description, Family
from runtime.model.families.llama import OUT, QKV, lfm2, optional_biases, rms_decoder
from runtime.model.families.options import Options, alternating, head_width, one_rotation, windows

_CORRECTION = "gate.e_score_correction_bias"


def _experts(options: Options, *, shared: int | None = None, correction: bool = True) -> ExpertsConfig:
    """Return the mixture of experts. Its options have the same names in all of these families, except some.

    Args:
        options: the configuration.
        shared: number of shared experts, which are one MLP of several times their width.
        correction: as for ``ExpertsConfig``.

    Raises:
        UnsupportedDecoder: a token's experts are chosen from a part of the groups of experts.
    """
    groups, chosen = options.get("n_group") or 1, options.get("topk_group") or 1
    if groups != chosen:
        raise UnsupportedDecoder(f"group-limited routing (n_group={groups}, topk_group={chosen})")
    return ExpertsConfig(
        options["num_experts"],
        options["num_experts_per_tok"],
        options["moe_intermediate_size"],
        scores="sigmoid",
        normalized=bool(options.get("norm_topk_prob")),
        scale=float(options["routed_scaling_factor"]),
        correction=correction,
        shared_intermediate=(shared or 0) * options["moe_intermediate_size"],
    )


def _lfm2_moe(options: Options) -> Description:
    """Read LFM2 with experts, whose scores are sigmoids.

    transformers adds 1e-6 to the sum by which the weights are divided. This is left out: the relative difference is
    1e-6 / sum, less than the rounding of a bfloat16 unless the scores of a token's experts sum up to less than 0.0005.
    """
    config, described = lfm2({**options, "block_auto_adjust_ff_dim": False})
    correction = bool(options.get("use_expert_bias"))
    own = expert_layout("feed_forward", matrices=("w1", "w3", "w2"), correction="expert_bias" if correction else "")
    names = {**own.names, **described.names}
    sparse = [i >= options["num_dense_layers"] for i in range(len(config.layers))]
    experts = _experts(options, correction=correction)
    return with_experts(config, experts, sparse), replace(own, names=names, biases=described.biases)


def _dots1(options: Options) -> Description:
    count, sliding = options["num_hidden_layers"], options.get("sliding_window")
    types = [
        "sliding_attention" if sliding and i >= options["max_window_layers"] else "full_attention" for i in range(count)
    ]
    config = rms_decoder(options, windows=windows(options, types), rotations=(one_rotation(options),), qk_norm="head")
    shared = options.get("n_shared_experts")
    sparse = [i >= (options.get("first_k_dense_replace") or 0) for i in range(count)]
    names = expert_layout(
        shared="shared_experts" if shared else "",
        correction=_CORRECTION,
        biases=optional_biases(options, attention_bias=QKV + OUT),
    )
    return with_experts(config, _experts(options, shared=shared), sparse), names


def _glm4_moe(options: Options) -> Description:
    """Read GLM-4.5 and later, or Solar Open, which has experts in all layers and rotates whole heads."""
    glm = options["model_type"] == "glm4_moe"
    count, shared = options["num_hidden_layers"], options["n_shared_experts"]
    if not glm:
        options = {"intermediate_size": options["moe_intermediate_size"], **options}
    config = rms_decoder(
        options,
        rotations=(one_rotation(options, theta=1e4 if glm else 1e6, part=0.5 if glm else 1.0),),
        qk_norm="head" if glm and options.get("use_qk_norm") else "none",
    )
    names = expert_layout(
        shared="shared_experts" if shared else "",
        correction=_CORRECTION,
        biases=optional_biases(options, attention_bias=QKV),
        ignored=(rf"layers\.{count}\.",),  # a layer that predicts a further token
    )
    first = options["first_k_dense_replace"] if glm else 0
    return with_experts(config, _experts(options, shared=shared), [i >= first for i in range(count)]), names


def _exaone_moe(options: Options) -> Description:
    """Read EXAONE 4 with experts, which rotates only in the layers with a window."""
    count = options["num_hidden_layers"]
    types = options.get("layer_types") or alternating(options, options["sliding_window_pattern"])
    config = rms_decoder(
        options,
        windows=windows(options, types),
        rotated=[kind == "sliding_attention" for kind in types],
        rotations=(one_rotation(options),),
        qk_norm="head",
    )
    shared, first = options["num_shared_experts"], options["first_k_dense_replace"]
    if not options.get("mlp_layer_types"):
        options = {**options, "mlp_layer_types": ["sparse" if i >= first else "dense" for i in range(count)]}
    names = expert_layout(
        shared="shared_experts" if shared else "",
        correction="e_score_correction_bias",
        renamed={r"layers\.(\d+)\.mlp\.gate\.e_score": r"layers.\1.mlp.e_score"},
        ignored=(r"mtp",),
    )
    return with_experts(config, _experts(options, shared=shared), sparse_layers(options)), names


def _minimax_m2(options: Options) -> Description:
    width = options.get("rotary_dim")
    part = 1.0 if width is None else width / head_width(options)
    config = rms_decoder(options, rotations=(one_rotation(options, theta=5e6, part=part),), qk_norm="full")
    options = {**options, "moe_intermediate_size": options["intermediate_size"], "norm_topk_prob": True}
    names = expert_layout(
        "block_sparse_moe",
        matrices=("w1", "w3", "w2"),
        in_memory="mlp",
        correction="e_score_correction_bias",
        renamed={r"layers\.(\d+)\.mlp\.(gate\.|e_score)": r"layers.\1.block_sparse_moe.\2"},
    )
    return with_experts(config, _experts({**options, "routed_scaling_factor": 1.0})), names


def _hy_v3(options: Options) -> Description:
    count, shared = options["num_hidden_layers"], options["num_shared_experts"]
    config = rms_decoder(options, rotations=(one_rotation(options, theta=11_158_840.0),), qk_norm="head")
    if not options.get("mlp_layer_types"):
        options = {**options, "mlp_layer_types": ["dense", *["sparse"] * (count - 1)]}
    names = expert_layout(
        names={"router": "layers.{i}.mlp.router.gate"},
        shared="shared_mlp",
        correction="expert_bias",
        renamed={
            r"layers\.(\d+)\.mlp\.gate\.": r"layers.\1.mlp.router.gate.",
            r"layers\.(\d+)\.mlp\.e_score_correction_bias": r"layers.\1.mlp.expert_bias",
            r"layers\.(\d+)\.mlp\.shared_experts\.": r"layers.\1.mlp.shared_mlp.",
        },
        biases=optional_biases(options, attention_bias=QKV + OUT),
        ignored=(rf"layers\.{count}\.",),  # a layer that predicts a further token
    )
    return with_experts(config, _experts(options, shared=shared), sparse_layers(options)), names


_COMMON = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "routed_scaling_factor": 1.0}
_COUNT = {"n_routed_experts": "num_experts", "num_local_experts": "num_experts"}
_GLM = {
    **_COMMON,
    "num_key_value_heads": 8,
    "moe_intermediate_size": 1408,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
}

SIGMOID_EXPERTS = {
    "lfm2_moe": Family(
        "Lfm2MoeForCausalLM",
        _lfm2_moe,
        {
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "conv_L_cache": 3,
            "moe_intermediate_size": 1792,
            "num_dense_layers": 2,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "use_expert_bias": True,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "tie_word_embeddings": True,
            "eos_token_id": 2,
        },
        {"norm_eps": "rms_norm_eps", "tie_embedding": "tie_word_embeddings"},
    ),
    "dots1": Family(
        "Dots1ForCausalLM",
        _dots1,
        {
            **_COMMON,
            "rms_norm_eps": 1e-6,
            "num_key_value_heads": 32,
            "moe_intermediate_size": 1408,
            "sliding_window": 4096,
            "max_window_layers": 62,
        },
        _COUNT,
    ),
    "glm4_moe": Family("Glm4MoeForCausalLM", _glm4_moe, {**_GLM, "first_k_dense_replace": 1}, _COUNT),
    "solar_open": Family(
        "SolarOpenForCausalLM", _glm4_moe, {**_GLM, "head_dim": 128, "moe_intermediate_size": 1280}, _COUNT
    ),
    "exaone_moe": Family(
        "ExaoneMoeForCausalLM",
        _exaone_moe,
        {
            **_COMMON,
            "num_key_value_heads": 32,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 1024,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "eos_token_id": 53,
        },
    ),
    "minimax_m2": Family(
        "MiniMaxM2ForCausalLM",
        _minimax_m2,
        {
            **_COMMON,
            "rms_norm_eps": 1e-6,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "eos_token_id": 200020,
        },
        _COUNT,
    ),
    "hy_v3": Family(
        "HYV3ForCausalLM",
        _hy_v3,
        {
            **_COMMON,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "moe_intermediate_size": 1536,
            "num_experts": 192,
            "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.826,
        },
        {**_COUNT, "router_scaling_factor": "routed_scaling_factor"},
    ),
}
