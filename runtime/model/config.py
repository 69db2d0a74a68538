"""What the fast decoder must know of a model, told from the model's configuration.

What this file has no word for would be run wrongly in silence, so it is refused by name, and the model is then served
by the reference engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Family = Literal["gpt2", "llama"]
Activation = Literal["silu", "gelu_tanh", "gelu", "relu"]

_LM_CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class UnsupportedDecoder(Exception):
    """The fast decoder does not know this model; the text says what of it."""


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder's shape and constants.

    Args:
        family: gpt2 (LayerNorm, learned positions, plain MLP) or llama (RMSNorm, rotary positions, gated MLP).
        layers: blocks.
        hidden: width of the residual stream.
        intermediate: width inside the MLP.
        heads: query heads; ``kv_heads`` key and value heads, each serving ``heads / kv_heads`` of them.
        head_dim: width of one head; ``heads * head_dim`` need not be ``hidden``.
        vocabulary: rows of the embedding.
        context_length: positions the model knows.
        norm_epsilon: added to the variance.
        activation: of the MLP.
        tied: whether the head is the embedding.
        inverse_frequencies: radians per position of each of ``head_dim / 2`` rotations, scaling applied (RoPE,
            arXiv:2104.09864); empty for gpt2.
        rope_attention_factor: what cosines and sines are multiplied by.
    """

    family: Family
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_length: int
    norm_epsilon: float
    activation: Activation
    tied: bool
    inverse_frequencies: tuple[float, ...] = ()
    rope_attention_factor: float = 1.0

    @classmethod
    def from_transformers(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Read the content of a ``config.json``, of transformers 5 or older.

        Raises:
            UnsupportedDecoder: it asks for something this decoder does not do.
        """
        kind = config.get("model_type")
        classes = config.get("architectures")
        if kind not in _LM_CLASSES or (classes and _LM_CLASSES[kind] not in classes):
            raise UnsupportedDecoder(f"architecture {', '.join(classes or [str(kind)])}")
        if config.get("quantization_config"):
            raise UnsupportedDecoder("weights that are quantized in the checkpoint")
        try:
            return _gpt2(config) if kind == "gpt2" else _llama(config)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise UnsupportedDecoder(f"an incomplete configuration ({error!r})") from error

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``from_json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DecoderConfig:
        """The inverse of ``to_json``, also after a way through JSON text.

        Raises:
            TypeError: a field is missing or unknown.
        """
        return cls(**{**data, "inverse_frequencies": tuple(data.get("inverse_frequencies", ()))})


def _gpt2(config: Mapping[str, Any]) -> DecoderConfig:
    for name, wanted in {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    }.items():
        if bool(config.get(name, wanted)) is not wanted:
            raise UnsupportedDecoder(f"{name}={config[name]}")
    hidden, heads = config["n_embd"], config["n_head"]
    return DecoderConfig(
        family="gpt2",
        layers=config["n_layer"],
        hidden=hidden,
        intermediate=config.get("n_inner") or 4 * hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocabulary=config["vocab_size"],
        context_length=config["n_positions"],
        norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
        activation=_activation(config.get("activation_function", "gelu_new")),
        tied=config.get("tie_word_embeddings", True),
    )


def _llama(config: Mapping[str, Any]) -> DecoderConfig:
    mistral = config["model_type"] == "mistral"
    if mistral and config.get("sliding_window", "default") is not None:
        raise UnsupportedDecoder("sliding-window attention")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    context = config["max_position_embeddings"]
    frequencies, attention_factor = _rotation(_rope(config), head_dim, context)
    return DecoderConfig(
        family="llama",
        layers=config["num_hidden_layers"],
        hidden=hidden,
        intermediate=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads", 8 if mistral else None) or heads,
        head_dim=head_dim,
        vocabulary=config["vocab_size"],
        context_length=context,
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        activation=_activation(config.get("hidden_act", "silu")),
        tied=config.get("tie_word_embeddings", False),
        inverse_frequencies=frequencies,
        rope_attention_factor=attention_factor,
    )


def _activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise UnsupportedDecoder(f"activation {name}")
    return _ACTIVATIONS[name]


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary parameters, wherever this version of the file keeps them."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    rope = {"rope_theta": config.get("rope_theta") or 10_000.0, **given}
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) not in (None, 1):
        raise UnsupportedDecoder("partial rotary positions")
    if trained := config.get("original_max_position_embeddings"):
        rope["original_max_position_embeddings"] = trained
    return rope


def _rotation(rope: Mapping[str, Any], head_dim: int, context: int) -> tuple[tuple[float, ...], float]:
    """Radians per position, and the factor of cosines and sines.

    Frequencies are the plain ones, linearly interpolated ones, those of Llama 3.1 (its reference code), those of YaRN
    (arXiv:2309.00071), or the plain ones over a divisor each (LongRoPE, arXiv:2402.13753) where short and long texts
    have the same divisors.
    """
    plain: list[float] = [rope["rope_theta"] ** (-i / head_dim) for i in range(0, head_dim, 2)]
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return tuple(plain), 1.0
    if kind == "linear":
        return tuple(frequency / rope["factor"] for frequency in plain), 1.0
    trained: int = rope.get("original_max_position_embeddings") or context
    if kind == "longrope" and rope["short_factor"] == rope["long_factor"] and "attention_factor" in rope:
        divided = (frequency / factor for frequency, factor in zip(plain, rope["short_factor"], strict=True))
        return tuple(divided), float(rope["attention_factor"])
    if kind == "llama3":
        return _llama3(plain, rope, trained), 1.0
    if kind == "yarn" and "attention_factor" in rope and rope.get("truncate", True):
        return _yarn(plain, rope, trained), float(rope["attention_factor"])
    raise UnsupportedDecoder(f"rotary positions of type {kind}")


def _llama3(plain: Sequence[float], rope: Mapping[str, Any], trained: int) -> tuple[float, ...]:
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))

    def scaled(frequency: float) -> float:
        turns = trained * frequency / (2 * math.pi)  # over the context it was trained on
        share = min(1.0, max(0.0, (turns - low) / (high - low)))  # of the plain frequency, the rest is interpolated
        return share * frequency + (1 - share) * frequency / factor

    return tuple(map(scaled, plain))


def _yarn(plain: Sequence[float], rope: Mapping[str, Any], trained: int) -> tuple[float, ...]:
    factor, base = float(rope["factor"]), float(rope["rope_theta"])
    last = 2 * len(plain) - 1

    def pair(turns: float) -> float:
        """The pair of values, counted in fractions, that turns so often over the trained context."""
        return len(plain) * math.log(trained / (turns * 2 * math.pi)) / math.log(base)

    low = max(0, math.floor(pair(rope.get("beta_fast") or 32)))
    high = min(last, math.ceil(pair(rope.get("beta_slow") or 1)))

    def scaled(i: int, frequency: float) -> float:
        share = 1 - min(1.0, max(0.0, (i - low) / (high - low or 0.001)))  # of the plain frequency
        return share * frequency + (1 - share) * frequency / factor

    return tuple(scaled(i, frequency) for i, frequency in enumerate(plain))
