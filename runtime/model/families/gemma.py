"""The Gemma families, and those that normalize the outputs of attention and MLP instead of their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from runtime.model.config import DecoderConfig, UnsupportedDecoder
from runtime.model.families.family import Description, Family
from runtime.model.families.llama import OUT, QKV, layout, optional_biases, rms_decoder
from runtime.model.families.options import (
    Options,
    activation,
    alternating,
    decoder,
    head_width,
    one_rotation,
    require,
    windows,
)
from runtime.model.families.rotary import rotation

POST_NORMS = {
    "attention_post_norm": "layers.{i}.post_attention_layernorm",
    "mlp_post_norm": "layers.{i}.post_feedforward_layernorm",
}
_SANDWICH = {**POST_NORMS, "mlp_norm": "layers.{i}.pre_feedforward_layernorm"}


def _gemma(options: Options) -> Description:
    require(options, use_bidirectional_attention=False)
    # The first checkpoints name the exact function, but were trained with the approximation, as transformers assumes.
    function = "gelu_tanh" if options["hidden_act"] == "gelu" else activation(options["hidden_act"])
    config = rms_decoder(
        options,
        activation=function,
        rotations=(one_rotation(options),),
        embedding_scale=options["hidden_size"] ** 0.5,
    )
    return config, layout(biases=optional_biases(options, attention_bias=QKV + OUT), norm_offset=1.0)


def _gemma2(options: Options) -> Description:
    config = _sandwich(
        options,
        windows=windows(options, alternating(options, 2)),
        rotations=(one_rotation(options),),
        attention_softcap=float(options.get("attn_logit_softcapping") or 0),
    )
    biases = optional_biases(options, attention_bias=QKV + OUT)
    return config, layout(_SANDWICH, biases=biases, norm_offset=1.0)


def _gemma3_text(options: Options) -> Description:
    require(options, attn_logit_softcapping=None)
    given = windows(options, alternating(options, options.get("sliding_window_pattern", 6)))
    config = _sandwich(options, windows=given, qk_norm="head")
    config = two_rotations(config, options, full=options.get("rope_theta") or 1e6, sliding=_local_theta(options))
    biases = optional_biases(options, attention_bias=QKV + OUT)
    return config, layout(_SANDWICH, biases=biases, norm_offset=1.0)


def _gemma3(options: Options) -> Description:
    """Read the text model of a multimodal one."""
    text = options["text_config"]
    if text.get("quantization_config"):
        raise UnsupportedDecoder("weights that are quantized in the checkpoint")
    tied = options["tie_word_embeddings"]
    config, text_layout = _gemma3_text({**_GEMMA3_TEXT, **text, "tie_word_embeddings": tied})
    return config, replace(
        text_layout,
        prefixes=("model.language_model.", "language_model.model.", "language_model.", "model."),
        ignored=(*text_layout.ignored, r"(model\.)?(vision_tower|multi_modal_projector)\."),
    )


def _sandwich(options: Options, **fields: Any) -> DecoderConfig:
    """Return what Gemma 2 and 3 have in common: norms around attention and MLP."""
    require(options, use_bidirectional_attention=False)
    common = {
        "activation": activation(options["hidden_activation"]),
        "embedding_scale": options["hidden_size"] ** 0.5,
        "attention_scale": options["query_pre_attn_scalar"] ** -0.5,
        "logit_softcap": float(options.get("final_logit_softcapping") or 0),
        "post_norm": True,
    }
    config: DecoderConfig = rms_decoder(options, **{**common, **fields})
    return config


def _local_theta(options: Options) -> float:
    theta: float = options.get("rope_local_base_freq") or 1e4
    return theta


def two_rotations(config: DecoderConfig, options: Options, *, full: float, sliding: float) -> DecoderConfig:
    """Return a decoder with a rotary embedding for layers with full attention, and another one for those with a window.

    Args:
        config: the decoder.
        options: the configuration, in the older or the newer layout.
        full: base of the first, if the configuration does not say.
        sliding: base of the second, if the configuration does not say.
    """
    given = options.get("rope_parameters") or {}
    scaling = options.get("rope_scaling") or {}  # in the older layout, only that of layers with full attention
    context, width = options["max_position_embeddings"], head_width(options)
    parameters: list[Mapping[str, Any]] = [
        {"rope_theta": full, **(given.get("full_attention") or {}), **scaling},
        {"rope_theta": sliding, **(given.get("sliding_attention") or {})},
    ]
    if any(rope.get("partial_rotary_factor") not in (None, 1) for rope in parameters):
        raise UnsupportedDecoder("rotary positions for a part of each head")
    rotations = tuple(rotation(rope, width, context) for rope in parameters)
    types = options.get("layer_types") or _types(config, options)
    layers = [
        replace(layer, rotation=0 if kind == "full_attention" else 1)
        for layer, kind in zip(config.layers, types, strict=True)
    ]
    return replace(config, layers=tuple(layers), rotations=rotations)


def _types(config: DecoderConfig, options: Options) -> list[str]:
    pattern = 4 if options["model_type"] == "olmo3" else options.get("sliding_window_pattern", 6)
    return alternating(options, pattern)


def _olmo(options: Options) -> Description:
    require(options, clip_qkv=None)
    config = decoder(
        options,
        norm="layer",
        norm_epsilon=1e-5,
        activation=activation(options["hidden_act"]),
        gated=True,
        rotations=(one_rotation(options),),
    )
    described = layout(biases=optional_biases(options, attention_bias=QKV + OUT))
    named = {name: module for name, module in described.names.items() if not name.endswith("norm")}  # without weights
    return config, replace(described, names=named)


def _olmo2(options: Options) -> Description:
    """Read OLMo 2 or OLMo 3, which has windows."""
    fields: dict[str, Any] = {"pre_norm": False, "post_norm": True, "qk_norm": "full"}
    biases = optional_biases(options, attention_bias=QKV + OUT)
    if options["model_type"] == "olmo2":
        return rms_decoder(options, rotations=(one_rotation(options),), **fields), layout(POST_NORMS, biases=biases)
    config = rms_decoder(options, windows=windows(options, alternating(options, 4)), **fields)
    config = two_rotations(config, options, full=options.get("rope_theta") or 5e5, sliding=5e5)
    return config, layout(POST_NORMS, biases=biases)


def _exaone4(options: Options) -> Description:
    count, sliding = options["num_hidden_layers"], options.get("sliding_window")
    types = options.get("layer_types")
    if types is None:
        pattern = options["sliding_window_pattern"] if sliding else 0
        types = alternating(options, pattern) if pattern else ["full_attention"] * count
    config = rms_decoder(
        options,
        windows=windows(options, types),
        rotated=[sliding is None or kind == "sliding_attention" for kind in types],
        rotations=(one_rotation(options),),
        pre_norm=False,
        post_norm=True,
        qk_norm="head",
    )
    return config, layout(POST_NORMS)


_GEMMA = {
    "rms_norm_eps": 1e-6,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "eos_token_id": 1,
}
_GEMMA2 = {
    **_GEMMA,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
_GEMMA3_TEXT = {  # multimodal checkpoints leave out most options
    **_GEMMA,
    "model_type": "gemma3_text",
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_OLMO = {"hidden_act": "silu", "eos_token_id": 50279}

GEMMA = {
    "gemma": Family("GemmaForCausalLM", _gemma, {**_GEMMA, "num_key_value_heads": 16}),
    "gemma2": Family("Gemma2ForCausalLM", _gemma2, _GEMMA2),
    "gemma3_text": Family("Gemma3ForCausalLM", _gemma3_text, _GEMMA3_TEXT),
    "gemma3": Family("Gemma3ForConditionalGeneration", _gemma3, {"tie_word_embeddings": True, "text_config": {}}),
    "olmo": Family("OlmoForCausalLM", _olmo, _OLMO),
    "olmo2": Family("Olmo2ForCausalLM", _olmo2, {**_OLMO, "rms_norm_eps": 1e-5}),
    "olmo3": Family("Olmo3ForCausalLM", _olmo2, {**_OLMO, "rms_norm_eps": 1e-5, "sliding_window": 4096}),
    "exaone4": Family(
        "Exaone4ForCausalLM",
        _exaone4,
        {
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "num_key_value_heads": 32,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
            "eos_token_id": 2,
        },
    ),
}
