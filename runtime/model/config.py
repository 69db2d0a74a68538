"""The fast decoder's configuration, read from a model's ``config.json``.

An option that is not supported here would silently give wrong results. So it is refused by name, and the reference
engine serves the model.
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
    """The fast decoder does not support this model; the message names the unsupported part."""


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder's shape and constants.

    Args:
        family: gpt2 (LayerNorm, learned positions, plain MLP) or llama (RMSNorm, rotary positions, gated MLP).
        layers: number of decoder layers.
        hidden: width of the residual stream.
        intermediate: width inside the MLP.
        heads: number of query heads.
        kv_heads: number of key and value heads, each shared by ``heads / kv_heads`` query heads.
        head_dim: width of one head; ``heads * head_dim`` need not equal ``hidden``.
        vocabulary: number of rows of the embedding.
        context_length: maximum number of positions.
        norm_epsilon: constant added to the variance in norms.
        activation: activation function of the MLP.
        tied: whether the output head shares the embedding's weights.
        inverse_frequencies: radians per position of each of ``head_dim / 2`` rotations, scaling applied (RoPE,
            arXiv:2104.09864); empty for gpt2.
        rope_attention_factor: factor of the cosines and sines.
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
        """Read the content of a ``config.json``, written by transformers 5 or older.

        Raises:
            UnsupportedDecoder: it is incomplete or needs something that this decoder does not support.
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
        """Return the configuration as plain data for ``from_json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DecoderConfig:
        """Build a configuration from the result of ``to_json``, also after a round trip through JSON text.

        Raises:
            TypeError: a field is missing or unknown.
        """
        return cls(**{**data, "inverse_frequencies": tuple(data.get("inverse_frequencies", ()))})


def _gpt2(config: Mapping[str, Any]) -> DecoderConfig:
    """Read the configuration of a GPT-2 model."""
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
    """Read the configuration of a Llama or Mistral model."""
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
    """Return the rotary parameters, from where the file's version keeps them.

    Raises:
        UnsupportedDecoder: only a part of each head is rotated.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    rope = {"rope_theta": config.get("rope_theta") or 10_000.0, **given}
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) not in (None, 1):
        raise UnsupportedDecoder("partial rotary positions")
    if trained := config.get("original_max_position_embeddings"):
        rope["original_max_position_embeddings"] = trained
    return rope


def _rotation(rope: Mapping[str, Any], head_dim: int, context: int) -> tuple[tuple[float, ...], float]:
    """Return the rotary frequencies in radians per position, and the factor of the cosines and sines.

    Supported are unscaled and linearly interpolated frequencies, those of Llama 3.1 (its reference code), those of YaRN
    (arXiv:2309.00071), and those of LongRoPE (arXiv:2402.13753: a divisor for each frequency) if short and long texts
    have the same divisors.

    Raises:
        UnsupportedDecoder: the scaling is of another type.
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
    """Scale rotary frequencies as in Llama 3.1's reference code.

    Args:
        plain: the unscaled frequencies, radians per position.
        rope: the rotary parameters.
        trained: the context length before scaling, in tokens.
    """
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))

    def scaled(frequency: float) -> float:
        turns = trained * frequency / (2 * math.pi)  # full rotations over the trained context
        share = min(1.0, max(0.0, (turns - low) / (high - low)))  # weight of the unscaled frequency
        return share * frequency + (1 - share) * frequency / factor

    return tuple(map(scaled, plain))


def _yarn(plain: Sequence[float], rope: Mapping[str, Any], trained: int) -> tuple[float, ...]:
    """Scale rotary frequencies as in YaRN (arXiv:2309.00071). Arguments as for ``_llama3``."""
    factor, base = float(rope["factor"]), float(rope["rope_theta"])
    last = 2 * len(plain) - 1

    def pair(turns: float) -> float:
        """Return the fractional index of the pair of values that rotates this many times over the trained context."""
        return len(plain) * math.log(trained / (turns * 2 * math.pi)) / math.log(base)

    low = max(0, math.floor(pair(rope.get("beta_fast") or 32)))
    high = min(last, math.ceil(pair(rope.get("beta_slow") or 1)))

    def scaled(i: int, frequency: float) -> float:
        share = 1 - min(1.0, max(0.0, (i - low) / (high - low or 0.001)))  # weight of the unscaled frequency
        return share * frequency + (1 - share) * frequency / factor

    return tuple(scaled(i, frequency) for i, frequency in enumerate(plain))
