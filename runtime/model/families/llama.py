"""Llama and the families that differ from it by a few options."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.model.checkpoint_layout import CheckpointLayout
from runtime.model.families.family import Description, Family
from runtime.model.families.options import Options, activation, decoder, one_rotation

NAMES = {
    "embed": "embed_tokens",
    "attention_norm": "layers.{i}.input_layernorm",
    "q": "layers.{i}.self_attn.q_proj",
    "k": "layers.{i}.self_attn.k_proj",
    "v": "layers.{i}.self_attn.v_proj",
    "attention_out": "layers.{i}.self_attn.o_proj",
    "mlp_norm": "layers.{i}.post_attention_layernorm",
    "gate": "layers.{i}.mlp.gate_proj",
    "up": "layers.{i}.mlp.up_proj",
    "down": "layers.{i}.mlp.down_proj",
    "final_norm": "norm",
    "head": "lm_head",
}
"""Names of the tensors in Llama's checkpoints, without the prefix of the base model."""

QKV, MLP = ("q", "k", "v"), ("gate", "up", "down")
_INVERSE_FREQUENCIES = (r".*rotary_emb\.inv_freq$",)  # saved by older versions of transformers


def layout(names: Mapping[str, str] = NAMES, **fields: object) -> CheckpointLayout:
    """Return a layout of checkpoints that are named as Llama's, with some differences."""
    common = {"names": names, "prefixes": ("model.",), "ignored": _INVERSE_FREQUENCIES, "biases": frozenset()}
    return CheckpointLayout(**{**common, **fields})  # type: ignore[arg-type]


def _biases(options: Options) -> frozenset[str]:
    """Return the parts with biases, from the two options for them."""
    attention = (*QKV, "attention_out") if options.get("attention_bias") else ()
    return frozenset((*attention, *(MLP if options.get("mlp_bias") else ())))


def _llama(options: Options) -> Description:
    window = options.get("sliding_window") if options["model_type"] == "mistral" else None
    return decoder(
        options,
        windows=[window or 0] * options["num_hidden_layers"],
        norm="rms",
        norm_epsilon=options["rms_norm_eps"],
        activation=activation(options["hidden_act"]),
        gated=True,
        rotations=(one_rotation(options),),
    ), layout(biases=_biases(options) if options["model_type"] == "llama" else frozenset())


_LLAMA_DEFAULTS = {"rms_norm_eps": 1e-6, "hidden_act": "silu"}

LLAMA = {
    "llama": Family("LlamaForCausalLM", _llama, _LLAMA_DEFAULTS),
    "mistral": Family(
        "MistralForCausalLM", _llama, {**_LLAMA_DEFAULTS, "num_key_value_heads": 8, "sliding_window": 4096}
    ),
}
