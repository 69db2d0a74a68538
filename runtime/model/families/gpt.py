"""GPT-2 and the families that come from it: LayerNorm, biases, and MLPs without a gate."""

from __future__ import annotations

from typing import Any

from runtime.model.checkpoint_layout import CheckpointLayout, QKVOrder
from runtime.model.config import DecoderConfig, UnsupportedDecoder
from runtime.model.families.family import Description, Family
from runtime.model.families.llama import OUT, QKV, layout, optional_biases
from runtime.model.families.options import Options, activation, alibi_slopes, decoder, one_rotation, require

NORMS = ("attention_norm", "mlp_norm", "final_norm")
_ALL_BIASES = frozenset({"embed_norm", *NORMS, "qkv", *QKV, *OUT, "up", "down"})
MASKS: tuple[str, ...] = (r".*\.(?:attn|attention)\.(?:bias|masked_bias)$",)
"""Patterns of causal masks, saved by older versions of transformers."""

_GPT2_NAMES = {
    "embed": "wte",
    "positions": "wpe",
    "attention_norm": "h.{i}.ln_1",
    "qkv": "h.{i}.attn.c_attn",
    "attention_out": "h.{i}.attn.c_proj",
    "mlp_norm": "h.{i}.ln_2",
    "up": "h.{i}.mlp.c_fc",
    "down": "h.{i}.mlp.c_proj",
    "final_norm": "ln_f",
    "head": "lm_head",
}


def _gpt2(options: Options) -> Description:
    require(
        options,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        reorder_and_upcast_attn=False,
        add_cross_attention=False,
    )
    return _gpt(options), CheckpointLayout(
        _GPT2_NAMES,
        transposed=frozenset({"qkv", "attention_out", "up", "down"}),
        ignored=MASKS,
        prefixes=("transformer.",),
        biases=_ALL_BIASES,
    )


def _gpt_bigcode(options: Options) -> Description:
    require(options, scale_attn_weights=True, add_cross_attention=False)
    heads = 1 if options["multi_query"] else options["num_attention_heads"]
    order: QKVOrder = "blocks" if options["multi_query"] else "heads"
    return _gpt(options, kv_heads=heads), CheckpointLayout(
        _GPT2_NAMES,
        qkv_order=order,
        ignored=MASKS,
        prefixes=("transformer.",),
        biases=_ALL_BIASES,
    )


def _gpt_neo(options: Options) -> Description:
    kinds = [kind for kinds, repeats in options["attention_types"] for _ in range(repeats) for kind in kinds]
    if other := set(kinds) - {"global", "local"}:
        raise UnsupportedDecoder(f"layers of type {min(map(str, other))}")
    if len(kinds) != options["num_hidden_layers"]:
        raise ValueError(f"{len(kinds)} attention types")
    names = {name: module for name, module in _GPT2_NAMES.items() if name != "qkv"}
    names |= {part: f"h.{{i}}.attn.attention.{part}_proj" for part in "qkv"}
    names["attention_out"] = "h.{i}.attn.attention.out_proj"
    return _gpt(
        options,
        intermediate=options.get("intermediate_size") or 4 * options["hidden_size"],
        windows=[options["window_size"] if kind == "local" else 0 for kind in kinds],
        attention_scale=1.0,
    ), CheckpointLayout(names, ignored=MASKS, prefixes=("transformer.",), biases=_ALL_BIASES - set("qkv"))


def _opt(options: Options) -> Description:
    require(options, _remove_final_layer_norm=False, do_layer_norm_before=True)
    if (options.get("word_embed_proj_dim") or options["hidden_size"]) != options["hidden_size"]:
        raise UnsupportedDecoder(f"word_embed_proj_dim={options['word_embed_proj_dim']}")
    names = {
        "embed": "embed_tokens",
        "positions": "embed_positions",
        "attention_norm": "layers.{i}.self_attn_layer_norm",
        "q": "layers.{i}.self_attn.q_proj",
        "k": "layers.{i}.self_attn.k_proj",
        "v": "layers.{i}.self_attn.v_proj",
        "attention_out": "layers.{i}.self_attn.out_proj",
        "mlp_norm": "layers.{i}.final_layer_norm",
        "up": "layers.{i}.fc1",
        "down": "layers.{i}.fc2",
        "final_norm": "final_layer_norm",
        "head": "lm_head",
    }
    biases = _ALL_BIASES if options["enable_bias"] else NORMS
    if not options["layer_norm_elementwise_affine"]:
        names = {name: module for name, module in names.items() if name not in NORMS}
    return _gpt(options, intermediate=options["ffn_dim"]), CheckpointLayout(
        names, position_offset=2, prefixes=("model.decoder.", "decoder."), biases=frozenset(biases)
    )


def _bloom(options: Options) -> Description:
    require(options, apply_residual_connection_post_layernorm=False)
    names = {
        "embed": "word_embeddings",
        "embed_norm": "word_embeddings_layernorm",
        "attention_norm": "h.{i}.input_layernorm",
        "qkv": "h.{i}.self_attention.query_key_value",
        "attention_out": "h.{i}.self_attention.dense",
        "mlp_norm": "h.{i}.post_attention_layernorm",
        "up": "h.{i}.mlp.dense_h_to_4h",
        "down": "h.{i}.mlp.dense_4h_to_h",
        "final_norm": "ln_f",
        "head": "lm_head",
    }
    return _gpt(
        options,
        context_length=options.get("seq_length") or 2048,
        activation="gelu_tanh",
        learned_positions=False,
        embedding_norm=True,
        alibi_slopes=alibi_slopes(options["num_attention_heads"]),
    ), CheckpointLayout(names, qkv_order="heads", prefixes=("transformer.",), biases=_ALL_BIASES)


def _starcoder2(options: Options) -> Description:
    """Read StarCoder 2, which has rotary positions."""
    config = _gpt(
        options,
        intermediate=options["intermediate_size"],
        kv_heads=options["num_key_value_heads"],
        windows=[options.get("sliding_window") or 0] * options["num_hidden_layers"],
        learned_positions=False,
        rotations=(one_rotation(options),),
    )
    names = {"up": "layers.{i}.mlp.c_fc", "down": "layers.{i}.mlp.c_proj"}
    biases = optional_biases(options, use_bias=QKV + OUT + ("up", "down"))
    return config, layout(names, biases=(*NORMS, *biases))


def _nemotron(options: Options) -> Description:
    """Read Nemotron, whose norms have 1 + weight, and whose positions are rotary."""
    config = _gpt(
        options,
        intermediate=options["intermediate_size"],
        kv_heads=options.get("num_key_value_heads") or options["num_attention_heads"],
        learned_positions=False,
        rotations=(one_rotation(options, part=0.5),),
    )
    biases = optional_biases(options, attention_bias=QKV + OUT, mlp_bias=("up", "down"))
    return config, layout(biases=(*NORMS, *biases), norm_offset=1.0)


def _gpt(options: Options, **fields: Any) -> DecoderConfig:
    """Return a decoder with what this module's families have in common. Arguments as for ``decoder``."""
    common: dict[str, Any] = {
        "intermediate": options.get("n_inner") or 4 * options["hidden_size"],
        "kv_heads": options["num_attention_heads"],
        "norm": "layer",
        "norm_epsilon": options["layer_norm_epsilon"],
        "gated": False,
        "learned_positions": True,
    }
    if "activation" not in fields:
        common["activation"] = activation(options["activation_function"])
    return decoder(options, **{**common, **fields})


GPT2_OPTIONS = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}
_GPT2_DEFAULTS = {
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
    "eos_token_id": 50256,
}

GPT = {
    "gpt2": Family("GPT2LMHeadModel", _gpt2, _GPT2_DEFAULTS, GPT2_OPTIONS),
    "gpt_bigcode": Family(
        "GPTBigCodeForCausalLM",
        _gpt_bigcode,
        {**_GPT2_DEFAULTS, "activation_function": "gelu_pytorch_tanh", "multi_query": True},
        GPT2_OPTIONS,
    ),
    "gpt_neo": Family(
        "GPTNeoForCausalLM",
        _gpt_neo,
        {**_GPT2_DEFAULTS, "window_size": 256, "attention_types": [[["global", "local"], 12]]},
        {"num_heads": "num_attention_heads", "num_layers": "num_hidden_layers"},
    ),
    "opt": Family(
        "OPTForCausalLM",
        _opt,
        {
            "tie_word_embeddings": True,
            "do_layer_norm_before": True,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "layer_norm_epsilon": 1e-5,
            "activation_function": "relu",
            "eos_token_id": 2,
        },
    ),
    "bloom": Family(
        "BloomForCausalLM",
        _bloom,
        {"tie_word_embeddings": True, "layer_norm_epsilon": 1e-5, "eos_token_id": 2},
        {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_embed": "hidden_size"},
    ),
    "starcoder2": Family(
        "Starcoder2ForCausalLM",
        _starcoder2,
        {
            "tie_word_embeddings": True,
            "layer_norm_epsilon": 1e-5,
            "activation_function": "gelu_pytorch_tanh",
            "num_key_value_heads": 2,
            "use_bias": True,
            "eos_token_id": 50256,
        },
        {"norm_epsilon": "layer_norm_epsilon", "hidden_act": "activation_function"},
    ),
    "nemotron": Family(
        "NemotronForCausalLM",
        _nemotron,
        {"layer_norm_epsilon": 1e-5, "activation_function": "relu2", "eos_token_id": 3},
        {"norm_eps": "layer_norm_epsilon", "hidden_act": "activation_function"},
    ),
}
