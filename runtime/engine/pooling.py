"""From the states of a text's tokens to its vector or logits: pooling and the stages behind it, text by text.

Each text is computed alone, in arrays of its own shape, so that its result does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from runtime.encoder_types import Pooling
from runtime.model.encoder_config import EncoderConfig, EncoderStage, StageActivation

Vector = NDArray[np.float32]

_LEAST_NORM = np.float32(1e-12)  # as torch's ``normalize``


class EncoderHead:
    """Computes an encoder's results from the states of tokens.

    Args:
        config: the encoder's description.
        tensors: the tensors of its stages, by the names of ``stage_tensors``.
    """

    def __init__(self, config: EncoderConfig, tensors: Mapping[str, Vector]) -> None:
        self.config = config
        self._tensors = tensors

    def outputs(self, length: int, unpooled: int) -> range:
        """Return the positions of the tokens whose states pooling needs.

        Args:
            length: number of tokens of the text.
            unpooled: number of tokens at its start that are left out; no more than all but one.
        """
        first, pooling = min(unpooled, length - 1), set(self.config.pooling)
        if pooling == {"cls"}:
            return range(first, first + 1)
        return range(length - 1, length) if pooling == {"lasttoken"} else range(first, length)

    def __call__(self, states: NDArray[np.float32], unpooled: int) -> Vector:
        """Return the vector or logits of a text.

        Args:
            states: [tokens, hidden] the states of the tokens that ``outputs`` names.
            unpooled: as for ``outputs``.
        """
        pooled = [_pooled(states, mode, unpooled) for mode in self.config.pooling]
        x = pooled[0] if len(pooled) == 1 else np.concatenate(pooled)
        for number, stage in enumerate(self.config.stages):
            x = self._stage(x, number, stage)
        return np.ascontiguousarray(x, np.float32)

    def _stage(self, x: Vector, number: int, stage: EncoderStage) -> Vector:
        y: Vector
        if stage.kind == "normalize":
            y = x / np.maximum(np.sqrt(np.sum(x * x)), _LEAST_NORM)
            return y
        weight, bias = self._tensors[f"stage.{number}.weight"], self._tensors.get(f"stage.{number}.bias")
        if stage.kind == "norm":
            centered = x - x.mean()
            y = centered / np.sqrt(np.mean(centered * centered) + np.float32(stage.epsilon)) * weight
        else:
            y = weight @ x
        return _activated(y if bias is None else y + bias, stage.activation)


def _pooled(states: NDArray[np.float32], mode: Pooling, unpooled: int) -> Vector:
    """Pool states [tokens, hidden]; the definitions are those of sentence-transformers' Pooling module."""
    found: Vector
    if mode == "cls":
        found = states[0]
    elif mode == "lasttoken":
        found = states[-1]
    elif mode == "max":
        found = states.max(axis=0)
    elif mode == "weightedmean":
        weights = np.arange(unpooled + 1, unpooled + len(states) + 1, dtype=np.float32)
        found = (states * weights[:, None]).sum(axis=0) / weights.sum()
    else:
        found = states.sum(axis=0) / np.float32(len(states) if mode == "mean" else len(states) ** 0.5)
    return found


def _activated(x: Vector, function: StageActivation) -> Vector:
    y: Vector = x
    if function == "tanh":
        y = np.tanh(x)
    elif function == "relu":
        y = np.maximum(x, 0)
    elif function in ("sigmoid", "silu"):
        share: Vector = np.float32(1) / (np.float32(1) + np.exp(-x))
        y = share if function == "sigmoid" else x * share
    elif function == "gelu":
        y = x * np.float32(0.5) * (np.float32(1) + _error_function(x * np.float32(0.5**0.5)))
    return y


def _error_function(x: Vector) -> Vector:
    """Return erf within 1.5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26)."""
    one = np.float32(1)
    t = one / (one + np.float32(0.3275911) * np.abs(x))
    series: Vector = np.zeros_like(t)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(factor)) * t
    found: Vector = np.sign(x) * (one - series * np.exp(-x * x))
    return found
