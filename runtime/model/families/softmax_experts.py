"""Families with mixtures of experts whose routers compute scores by softmax.

Softmax of the chosen experts' logits alone is softmax of all with normalized weights. Noise ("jitter") and losses of
the router are for training only.
"""

from __future__ import annotations

from runtime.model.config import ExpertsConfig
from runtime.model.families.experts import SHARED, expert_layout, sparse_layers, with_experts
from runtime.model.families.family import Description, Family
from runtime.model.families.gemma import POST_NORMS, two_rotations
from runtime.model.families.llama import MLP, OUT, QKV, granite_decoder, layout, optional_biases, rms_decoder
from runtime.model.families.options import Options, one_rotation, require, windows


def _mixtral(options: Options) -> Description:
    window = [options.get("sliding_window") or 0] * options["num_hidden_layers"]
    config = rms_decoder(options, windows=window, rotations=(one_rotation(options, theta=1e6),))
    experts = ExpertsConfig(
        options["num_experts"], options["num_experts_per_tok"], options["intermediate_size"], normalized=True
    )
    names = expert_layout(
        "block_sparse_moe",
        matrices=("w1", "w3", "w2"),
        in_memory="mlp",
        renamed={r"layers\.(\d+)\.mlp\.gate\.": r"layers.\1.block_sparse_moe.gate."},
    )
    return with_experts(config, experts), names


def _qwen_moe(options: Options) -> Description:
    """Read Qwen 2 (biases, a shared expert) or Qwen 3 with experts (norms of queries and keys)."""
    second = options["model_type"] == "qwen2_moe"
    count, sliding = options["num_hidden_layers"], options.get("use_sliding_window") and options.get("sliding_window")
    if second:
        types = [
            "sliding_attention" if sliding and i % 2 == 0 and i < options["max_window_layers"] else "full_attention"
            for i in range(count)
        ]
        given = windows({**options, "sliding_window": sliding or 0}, types)
    else:
        given = [sliding or 0] * count
    config = rms_decoder(
        options, windows=given, rotations=(one_rotation(options),), qk_norm="none" if second else "head"
    )
    experts = ExpertsConfig(
        options["num_experts"],
        options["num_experts_per_tok"],
        options["moe_intermediate_size"],
        normalized=bool(options.get("norm_topk_prob")),
        shared_intermediate=options["shared_expert_intermediate_size"] if second else 0,
        shared_gate=second,
    )
    dense, step = options.get("mlp_only_layers") or (), options["decoder_sparse_step"]
    sparse = [i not in dense and (i + 1) % step == 0 for i in range(count)]
    gate = {"shared_gate": "layers.{i}.mlp.shared_expert_gate"} if second else {}
    biases = optional_biases(options, qkv_bias=QKV) if second else optional_biases(options, attention_bias=QKV + OUT)
    names = expert_layout(names=gate, shared="shared_expert" if second else "", biases=biases)
    return with_experts(config, experts, sparse), names


def _olmoe(options: Options) -> Description:
    """Read OLMoE or FlexOlmo, which normalizes the outputs of attention and experts instead of their inputs."""
    require(options, clip_qkv=None)
    flex = options["model_type"] == "flex_olmo"
    config = rms_decoder(
        options,
        rotations=(one_rotation(options, theta=5e5 if flex else 1e4),),
        pre_norm=not flex,
        post_norm=flex,
        qk_norm="full",
    )
    experts = ExpertsConfig(
        options["num_experts"],
        options["num_experts_per_tok"],
        options["intermediate_size"],
        normalized=bool(options.get("norm_topk_prob")),
    )
    biases = optional_biases(options, attention_bias=QKV + OUT)
    return with_experts(config, experts), expert_layout(names=POST_NORMS if flex else {}, biases=biases)


def _granite_moe(options: Options) -> Description:
    """Read Granite 3 with experts, which are one tensor, and perhaps a shared one (``granitemoeshared``)."""
    shared = options["shared_intermediate_size"] if options["model_type"] == "granitemoeshared" else 0
    experts = ExpertsConfig(
        options["num_local_experts"],
        options["num_experts_per_tok"],
        options["intermediate_size"],
        normalized=True,
        shared_intermediate=shared,
    )
    block = "layers.{i}.block_sparse_moe"
    names = {
        "router": f"{block}.router.layer",
        "experts_gate_up": f"{block}.input_linear",
        "experts_down": f"{block}.output_linear",
    }
    if shared:
        names |= {
            "shared_expert_gate_up": "layers.{i}.shared_mlp.input_linear",
            "shared_expert_down": "layers.{i}.shared_mlp.output_linear",
        }
    stacked = {"experts_gate_up": f"{block}.experts.gate_up_proj", "experts_down": f"{block}.experts.down_proj"}
    renamed = {r"layers\.(\d+)\.block_sparse_moe\.router\.weight": r"layers.\1.block_sparse_moe.router.layer.weight"}
    biases = optional_biases(options, attention_bias=QKV + OUT)
    return (
        with_experts(granite_decoder(options), experts),
        layout(names, stacked=stacked, renamed=renamed, biases=biases),
    )


def _ernie_moe(options: Options) -> Description:
    """Read ERNIE 4.5 with experts.

    transformers divides weights by their sum, but by no less than 1e-12. This changes no float: the largest of E
    softmax scores is at least 1 / E, and a smaller sum would need a correction that prefers experts with scores of
    nearly 0.
    """
    config = rms_decoder(options, rotations=(one_rotation(options, theta=5e5),))
    shared = options["moe_num_shared_experts"]
    experts = ExpertsConfig(
        options["num_experts"],
        options["num_experts_per_tok"],
        options["moe_intermediate_size"],
        normalized=True,
        correction=True,
        shared_intermediate=options["moe_intermediate_size"] * shared,
    )
    first, last, interval = (options[f"moe_layer_{name}"] for name in ("start_index", "end_index", "interval"))
    last = len(config.layers) - 1 if last == -1 else last
    sparse = [first <= i <= last and (i + 1) % interval == 0 for i in range(len(config.layers))]
    names = expert_layout(
        shared="shared_experts" if shared else "",
        correction="moe_statics.e_score_correction_bias",
        renamed={r"layers\.(\d+)\.mlp\.gate\.moe_statics\.": r"layers.\1.mlp.moe_statics."},
        biases=optional_biases(options, use_bias=(*QKV, *OUT, *MLP, *(SHARED if shared else ()), "head")),
        interleaved_rotation=True,
        ignored=(r".*mtp_",),  # layers that predict several tokens
    )
    return with_experts(config, experts, sparse), names


def _mellum(options: Options) -> Description:
    count = options["num_hidden_layers"]
    options = {"mlp_layer_types": ["sparse"] * count, "layer_types": ["full_attention"] * count, **options}
    config = rms_decoder(options, windows=windows(options), qk_norm="head")
    config = two_rotations(config, options, full=5e5, sliding=1e4)
    experts = ExpertsConfig(
        options["num_experts"],
        options["num_experts_per_tok"],
        options["moe_intermediate_size"],
        normalized=bool(options["norm_topk_prob"]),
    )
    names = expert_layout(biases=optional_biases(options, attention_bias=QKV + OUT), ignored=(r"mtp\.",))
    return with_experts(config, experts, sparse_layers(options)), names


_COUNT = {"num_local_experts": "num_experts"}
_GRANITE = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "eos_token_id": 2,
}
_QWEN = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "sliding_window": 4096, "decoder_sparse_step": 1}

SOFTMAX_EXPERTS = {
    "mixtral": Family(
        "MixtralForCausalLM",
        _mixtral,
        {
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "eos_token_id": 2,
        },
        _COUNT,
    ),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM",
        _qwen_moe,
        {
            **_QWEN,
            "num_key_value_heads": 16,
            "qkv_bias": True,
            "max_window_layers": 28,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
        _COUNT,
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        _qwen_moe,
        {
            **_QWEN,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        _COUNT,
    ),
    "olmoe": Family(
        "OlmoeForCausalLM",
        _olmoe,
        {
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "eos_token_id": 50279,
        },
        _COUNT,
    ),
    "flex_olmo": Family(
        "FlexOlmoForCausalLM",
        _olmoe,
        {
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "num_experts": 7,
            "num_experts_per_tok": 5,
            "eos_token_id": 100257,
        },
        _COUNT,
    ),
    "granitemoe": Family("GraniteMoeForCausalLM", _granite_moe, _GRANITE),
    "granitemoeshared": Family(
        "GraniteMoeSharedForCausalLM", _granite_moe, {**_GRANITE, "shared_intermediate_size": 0}
    ),
    "ernie4_5_moe": Family(
        "Ernie4_5_MoeForCausalLM",
        _ernie_moe,
        {
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 1536,
            "num_experts": 64,
            "num_experts_per_tok": 6,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": -1,
            "moe_layer_interval": 1,
            "tie_word_embeddings": True,
            "eos_token_id": 2,
        },
        {"moe_num_experts": "num_experts", "moe_k": "num_experts_per_tok"},
    ),
    "mellum": Family(
        "MellumForCausalLM",
        _mellum,
        {
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "sliding_window": 1024,
            "moe_intermediate_size": 896,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
        },
        _COUNT,
    ),
}
