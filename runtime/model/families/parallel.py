"""Families whose attention and MLP get the same input, at least with some options: GPT-NeoX, GPT-J, Phi, Falcon, ..."""

from __future__ import annotations

from typing import Any

from runtime.model.checkpoint_layout import CheckpointLayout, QKVOrder
from runtime.model.config import DecoderConfig, UnsupportedDecoder
from runtime.model.families.family import Description, Family
from runtime.model.families.gpt import GPT2_OPTIONS, MASKS, NORMS
from runtime.model.families.llama import OUT, QKV, layout, optional_biases
from runtime.model.families.options import Options, activation, alternating, decoder, one_rotation, windows
from runtime.model.families.rotary import rotation


def _layer_norm_decoder(options: Options, **fields: Any) -> DecoderConfig:
    """Return a decoder with LayerNorm whose options are named as Llama's. Arguments as for ``decoder``."""
    common = {
        "norm": "layer",
        "norm_epsilon": options["layer_norm_eps"],
        "activation": activation(options["hidden_act"]),
    }
    return decoder(options, **common, **fields)


def _gpt_neox(options: Options) -> Description:
    config = _layer_norm_decoder(
        options,
        kv_heads=options["num_attention_heads"],
        gated=False,
        parallel=bool(options["use_parallel_residual"]),
        rotations=(one_rotation(options, part=0.25),),
    )
    names = {
        "embed": "embed_in",
        "attention_norm": "layers.{i}.input_layernorm",
        "qkv": "layers.{i}.attention.query_key_value",
        "attention_out": "layers.{i}.attention.dense",
        "mlp_norm": "layers.{i}.post_attention_layernorm",
        "up": "layers.{i}.mlp.dense_h_to_4h",
        "down": "layers.{i}.mlp.dense_4h_to_h",
        "final_norm": "final_layer_norm",
        "head": "lm_head",
    }
    biases = (*NORMS, "up", "down", *optional_biases(options, attention_bias=("qkv", "attention_out")))
    return config, CheckpointLayout(
        names,
        qkv_order="heads",
        ignored=(*MASKS, r".*rotary_emb\.inv_freq$"),
        prefixes=("gpt_neox.",),
        biases=frozenset(biases),
        renamed={r"embed_out\.": "lm_head."},
    )


def _gptj(options: Options) -> Description:
    width = options["rotary_dim"]
    if not width:
        raise UnsupportedDecoder(f"rotary_dim={width}")
    config = decoder(
        options,
        kv_heads=options["num_attention_heads"],
        intermediate=options.get("n_inner") or 4 * options["hidden_size"],
        norm="layer",
        norm_epsilon=options["layer_norm_epsilon"],
        activation=activation(options["activation_function"]),
        gated=False,
        parallel=True,
        shared_norm=True,
        rotations=(rotation({"rope_theta": 10_000.0}, width, options["max_position_embeddings"]),),
    )
    names = {
        "embed": "wte",
        "attention_norm": "h.{i}.ln_1",
        "q": "h.{i}.attn.q_proj",
        "k": "h.{i}.attn.k_proj",
        "v": "h.{i}.attn.v_proj",
        "attention_out": "h.{i}.attn.out_proj",
        "up": "h.{i}.mlp.fc_in",
        "down": "h.{i}.mlp.fc_out",
        "final_norm": "ln_f",
        "head": "lm_head",
    }
    return config, CheckpointLayout(
        names,
        interleaved_rotation=True,
        ignored=MASKS,
        prefixes=("transformer.",),
        biases=frozenset(("attention_norm", "final_norm", "up", "down", "head")),
    )


def _phi(options: Options) -> Description:
    config = _layer_norm_decoder(
        options,
        gated=False,
        parallel=True,
        shared_norm=True,
        qk_norm="head" if options.get("qk_layernorm") else "none",
        rotations=(one_rotation(options, part=0.5),),
    )
    names = {
        "q_norm": "layers.{i}.self_attn.q_layernorm",
        "k_norm": "layers.{i}.self_attn.k_layernorm",
        "attention_out": "layers.{i}.self_attn.dense",
        "up": "layers.{i}.mlp.fc1",
        "down": "layers.{i}.mlp.fc2",
        "final_norm": "final_layernorm",
    }
    biases = (*NORMS, *QKV, *OUT, "q_norm", "k_norm", "up", "down", "head")
    return config, layout(names, biases=biases)


def _stablelm(options: Options) -> Description:
    parallel = bool(options.get("use_parallel_residual"))
    config = _layer_norm_decoder(
        options,
        gated=True,
        parallel=parallel,
        shared_norm=parallel,
        qk_norm="head" if options.get("qk_layernorm") else "none",
        rotations=(one_rotation(options, part=0.25),),
    )
    names = {
        "q_norm": "layers.{i}.self_attn.q_layernorm.norms.{h}",
        "k_norm": "layers.{i}.self_attn.k_layernorm.norms.{h}",
    }
    return config, layout(names, biases=(*NORMS, *optional_biases(options, use_qkv_bias=QKV)))


def _falcon(options: Options) -> Description:
    if options.get("alibi"):
        raise UnsupportedDecoder("Falcon with alibi")
    new, parallel = bool(options.get("new_decoder_architecture")), bool(options["parallel_attn"])
    norms = options.get("num_ln_in_parallel_attn") or (2 if new else 1)
    heads = options["num_attention_heads"]
    order: QKVOrder = "groups"
    if new:
        kv_heads = options.get("num_kv_heads") or heads
    elif options["multi_query"]:
        kv_heads = 1
    else:
        kv_heads, order = heads, "heads"
    if (new and not parallel) or (not new and norms == 2) or norms not in (1, 2):
        raise UnsupportedDecoder(f"Falcon with parallel_attn={parallel} and num_ln_in_parallel_attn={norms}")
    config = decoder(
        options,
        kv_heads=kv_heads,
        head_dim=options["hidden_size"] // heads,
        intermediate=options.get("ffn_hidden_size") or 4 * options["hidden_size"],
        norm="layer",
        norm_epsilon=options["layer_norm_epsilon"],
        activation=activation(options["activation"]),
        gated=False,
        parallel=parallel,
        shared_norm=parallel and norms == 1,
        rotations=(one_rotation(options),),
    )
    names = {
        "embed": "word_embeddings",
        "attention_norm": "h.{i}.ln_attn" if norms == 2 else "h.{i}.input_layernorm",
        "qkv": "h.{i}.self_attention.query_key_value",
        "attention_out": "h.{i}.self_attention.dense",
        "mlp_norm": "h.{i}.ln_mlp" if norms == 2 else "h.{i}.post_attention_layernorm",
        "up": "h.{i}.mlp.dense_h_to_4h",
        "down": "h.{i}.mlp.dense_4h_to_h",
        "final_norm": "ln_f",
        "head": "lm_head",
    }
    biases = (*NORMS, *optional_biases(options, bias=("qkv", "attention_out", "up", "down")))
    return config, CheckpointLayout(
        names,
        qkv_order=order,
        ignored=(r".*rotary.*\.inv_freq$",),
        prefixes=("transformer.",),
        biases=frozenset(biases),
    )


def _cohere(options: Options) -> Description:
    """Read Command R or Command R7B (``cohere2``), which rotates only in the layers with a window."""
    second = options["model_type"] == "cohere2"
    types = options.get("layer_types") or alternating(options, options.get("sliding_window_pattern", 4))
    fields: dict[str, Any] = {}
    if second:
        fields = {"windows": windows(options, types), "rotated": [kind == "sliding_attention" for kind in types]}
    config = _layer_norm_decoder(
        options,
        gated=True,
        parallel=True,
        shared_norm=True,
        qk_norm="head" if options.get("use_qk_norm") and not second else "none",
        logit_scale=float(options["logit_scale"]),
        rotations=(one_rotation(options, theta=1e4 if second else 5e5),),
        **fields,
    )
    biases = optional_biases(options, attention_bias=QKV + OUT)
    return config, layout(biases=biases, interleaved_rotation=True)


_COHERE = {
    "layer_norm_eps": 1e-5,
    "hidden_act": "silu",
    "logit_scale": 0.0625,
    "tie_word_embeddings": True,
    "eos_token_id": 255001,
}

PARALLEL = {
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        _gpt_neox,
        {
            "layer_norm_eps": 1e-5,
            "hidden_act": "gelu",
            "use_parallel_residual": True,
            "attention_bias": True,
            "eos_token_id": 2,
        },
        {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
    ),
    "gptj": Family(
        "GPTJForCausalLM",
        _gptj,
        {
            "layer_norm_epsilon": 1e-5,
            "activation_function": "gelu_new",
            "rotary_dim": 64,
            "eos_token_id": 50256,
        },
        GPT2_OPTIONS,
    ),
    "phi": Family("PhiForCausalLM", _phi, {"layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "eos_token_id": 2}),
    "stablelm": Family(
        "StableLmForCausalLM",
        _stablelm,
        {"layer_norm_eps": 1e-5, "hidden_act": "silu", "num_key_value_heads": 32, "eos_token_id": 0},
    ),
    "falcon": Family(
        "FalconForCausalLM",
        _falcon,
        {
            "layer_norm_epsilon": 1e-5,
            "activation": "gelu",
            "multi_query": True,
            "parallel_attn": True,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "eos_token_id": 11,
        },
        {"n_embed": "hidden_size"},
    ),
    "cohere": Family("CohereForCausalLM", _cohere, _COHERE),
    "cohere2": Family("Cohere2ForCausalLM", _cohere, {**_COHERE, "sliding_window": 4096}),
}
