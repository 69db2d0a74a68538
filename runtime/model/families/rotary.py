"""Computes rotary position embeddings (RoPE, arXiv:2104.09864) from a model's configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.model.config import Rotation, UnsupportedDecoder

_Frequencies = NDArray[np.float32]


def rope_parameters(
    config: Mapping[str, Any], *, theta: float = 10_000.0, part: float | None = None, layer_type: str | None = None
) -> dict[str, Any]:
    """Return the rotary parameters, from where the version of transformers that wrote the file keeps them.

    Args:
        config: the content of a ``config.json``.
        theta: the family's default base.
        part: the family's default share of a head that is rotated; None for a family that rotates all of it.
        layer_type: the kind of layer, for configurations that have parameters for each kind.

    Raises:
        UnsupportedDecoder: a part of each head is rotated in a family that does not do this.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if layer_type is not None and isinstance(given.get(layer_type), Mapping):
        given = given[layer_type]
    rope: dict[str, Any] = {"rope_theta": config.get("rope_theta") or theta, **given}
    own = config.get("partial_rotary_factor")
    rope.setdefault("partial_rotary_factor", part if own is None else own)
    if rope["partial_rotary_factor"] is None:
        rope["partial_rotary_factor"] = 1.0
    if part is None and rope["partial_rotary_factor"] != 1:
        raise UnsupportedDecoder("rotary positions for a part of each head")
    if trained := config.get("original_max_position_embeddings"):
        rope["original_max_position_embeddings"] = trained
    return rope


def rotation(rope: Mapping[str, Any], head_dim: int, context: int) -> Rotation:
    """Return the rotary embedding that parameters describe.

    Supported are unscaled frequencies; linearly interpolated ones; those of Llama 3.1 (its reference code); those of
    YaRN (arXiv:2309.00071); those of LongRoPE (arXiv:2402.13753: a divisor for each frequency, others in long texts);
    and dynamic NTK scaling, which changes nothing within the configured context.
    Intermediate results are rounded to float32 where transformers rounds them, so that late positions agree with it.

    Args:
        rope: the rotary parameters, from ``rope_parameters``.
        head_dim: width of one head.
        context: the configured number of positions.

    Raises:
        UnsupportedDecoder: the scaling is of another type.
    """
    width = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    if width < 2 or width % 2:
        raise UnsupportedDecoder(f"rotary positions for {width} values of each head")
    exponents = (np.arange(0, width, 2, dtype=np.float32) / np.float32(width)).astype(np.float64)
    bases = (float(rope["rope_theta"]) ** exponents).astype(np.float32)
    plain: _Frequencies = np.float32(1) / bases
    kind = rope.get("rope_type") or rope.get("type") or "default"
    trained = int(rope.get("original_max_position_embeddings") or context)
    if kind == "default" or (kind == "dynamic" and not rope.get("alpha")):
        return _rotation(plain)
    if kind == "linear":
        return _rotation(plain / np.float32(rope["factor"]))
    if kind == "llama3":
        return _rotation(_llama3(plain, rope, trained))
    if kind == "yarn":
        return _rotation(_yarn(bases, rope, trained, context), _yarn_factor(rope, trained, context))
    if kind == "longrope":
        return _longrope(bases, rope, trained, context)
    raise UnsupportedDecoder(f"rotary positions of type {kind}")


def _rotation(frequencies: NDArray[Any], factor: float = 1.0) -> Rotation:
    return Rotation(tuple(frequencies.astype(np.float32).tolist()), float(factor))


def _llama3(plain: _Frequencies, rope: Mapping[str, Any], trained: int) -> NDArray[Any]:
    """Scale rotary frequencies as in Llama 3.1's reference code.

    Args:
        plain: the unscaled frequencies, radians per position.
        rope: the rotary parameters.
        trained: the context length before scaling, in tokens.
    """
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = trained * plain.astype(np.float64) / (2 * math.pi)  # full rotations over the trained context
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)  # weight of the unscaled frequency
    scaled: NDArray[Any] = share * plain + (1 - share) * plain / factor
    return scaled


def _yarn(bases: _Frequencies, rope: Mapping[str, Any], trained: int, context: int) -> NDArray[Any]:
    """Scale rotary frequencies as in YaRN (arXiv:2309.00071).

    Args:
        bases: the inverse of the unscaled frequencies.
        rope: the rotary parameters.
        trained: the context length before scaling, in tokens.
        context: the configured number of positions.
    """
    factor, theta, count = _factor(rope, trained, context), float(rope["rope_theta"]), len(bases)

    def pair(turns: float) -> float:
        """Return the fractional index of the pair of values that rotates this many times over the trained context."""
        return count * math.log(trained / (turns * 2 * math.pi)) / math.log(theta)

    low, high = pair(rope.get("beta_fast") or 32), pair(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(0, low), min(2 * count - 1, high)
    share = 1 - np.clip((np.arange(count) - low) / (high - low or 0.001), 0.0, 1.0)  # weight of the unscaled frequency
    plain = np.float32(1) / bases
    scaled: NDArray[Any] = share * plain + (1 - share) * (np.float32(1) / (np.float32(factor) * bases))
    return scaled


def _yarn_factor(rope: Mapping[str, Any], trained: int, context: int) -> float:
    """Return the factor of YaRN's cosines and sines (section 3.4), also DeepSeek's form with two constants."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    factor = _factor(rope, trained, context)

    def scale(constant: float) -> float:
        return 0.1 * constant * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(float(rope["mscale"])) / scale(float(rope["mscale_all_dim"]))
    return scale(1.0)


def _longrope(bases: _Frequencies, rope: Mapping[str, Any], trained: int, context: int) -> Rotation:
    """Return LongRoPE's rotary embedding. Arguments as for ``_yarn``."""
    factor = _factor(rope, trained, context)
    scale = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    if rope.get("attention_factor") is not None:
        scale = float(rope["attention_factor"])
    short, long = (np.float32(1) / (np.array(rope[f"{name}_factor"], np.float32) * bases) for name in ("short", "long"))
    if context <= trained or np.array_equal(short, long):
        return _rotation(short, scale)
    return replace(_rotation(short, scale), long_frequencies=tuple(long.tolist()), short_context=trained)


def _factor(rope: Mapping[str, Any], trained: int, context: int) -> float:
    """Return by how much the context is extended; without a number in the configuration, as the lengths say."""
    return context / trained if rope.get("factor") is None else float(rope["factor"])
