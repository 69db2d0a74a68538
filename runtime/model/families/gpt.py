"""GPT-2 and the families that come from it: LayerNorm, biases, and MLPs without a gate."""

from __future__ import annotations

from runtime.model.checkpoint_layout import CheckpointLayout
from runtime.model.families.family import Description, Family
from runtime.model.families.options import Options, activation, decoder, require

_ALL_BIASES = frozenset(
    {"embed_norm", "attention_norm", "mlp_norm", "final_norm", "qkv", "q", "k", "v", "attention_out", "up", "down"}
)
_MASKS = (r".*\.(?:attn|attention)\.(?:bias|masked_bias)$",)  # causal masks, saved by older versions of transformers

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
    return decoder(
        options,
        intermediate=options.get("n_inner") or 4 * options["hidden_size"],
        norm="layer",
        norm_epsilon=options["layer_norm_epsilon"],
        activation=activation(options["activation_function"]),
        gated=False,
        learned_positions=True,
    ), CheckpointLayout(
        _GPT2_NAMES,
        transposed=frozenset({"qkv", "attention_out", "up", "down"}),
        ignored=_MASKS,
        prefixes=("transformer.",),
        biases=_ALL_BIASES,
    )


_GPT2_OPTIONS = {
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
}

GPT = {
    "gpt2": Family("GPT2LMHeadModel", _gpt2, _GPT2_DEFAULTS, _GPT2_OPTIONS),
}
