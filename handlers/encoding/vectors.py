"""Arithmetic on the vectors and logits of an encoder: fewer dimensions, similarities, activations, and their JSON."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runtime.encoder_types import LogitActivation, Similarity

if TYPE_CHECKING:  # imported by the functions, because it takes a tenth of a second
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

_DIGITS = 9  # significant decimal digits that identify a float32


def shortened(vector: Vector, dimensions: int | None, *, unit: bool) -> Vector:
    """Return the first dimensions of a vector.

    Args:
        vector: the vector, [width].
        dimensions: their number; None for all.
        unit: whether the result gets the length 1; a vector of zeros stays as it is.
    """
    import numpy as np

    short = vector if dimensions is None else vector[:dimensions]
    if not unit:
        return short
    length = math.sqrt(float(np.dot(short.astype(np.float64), short.astype(np.float64))))
    return (short / np.float32(length)).astype(np.float32) if length else short


def base64_text(vector: Vector) -> str:
    """Return a vector's bytes in base64, in little-endian order."""
    return b64encode(vector.astype("<f4").tobytes()).decode()


def numbers(vectors: Sequence[Vector]) -> list[list[float]]:
    """Return vectors as numbers with nine significant digits, which read as float32 are the vectors' own.

    Args:
        vectors: vectors of the same width, at least one.
    """
    import numpy as np

    wide = np.stack(vectors).astype(np.float64)  # [N, width]
    exponents = np.floor(np.log10(np.abs(wide), where=wide != 0, out=np.zeros_like(wide)))
    scale = 10.0 ** np.clip(_DIGITS - 1 - exponents, -290, 290)
    found: list[list[float]] = (np.rint(wide * scale) / scale).tolist()
    return found


def similarity_of(kind: Similarity) -> Callable[[Vector, Vector], float]:
    """Return the function that compares two vectors, greater for those that are more alike; a distance is negated.

    Args:
        kind: how the model's vectors are compared. The names and signs are sentence-transformers'.
    """
    return {"cosine": _cosine, "dot": _dot, "euclidean": _euclidean, "manhattan": _manhattan}[kind]


def scores(logits: Sequence[float], activation: LogitActivation) -> list[float]:
    """Return the scores of an input's classes.

    Args:
        logits: the classes' logits.
        activation: what turns them into scores.
    """
    if activation == "sigmoid":
        return [_sigmoid(logit) for logit in logits]
    if activation == "softmax":
        top = max(logits)
        powers = [math.exp(logit - top) for logit in logits]
        return [power / sum(powers) for power in powers]
    return list(logits)


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1 + power)


def _dot(one: Vector, other: Vector) -> float:
    import numpy as np

    # One pair at a time, in float64: the same bits whatever else the request has.
    return float(np.dot(one.astype(np.float64), other.astype(np.float64)))


def _cosine(one: Vector, other: Vector) -> float:
    lengths = math.sqrt(_dot(one, one)) * math.sqrt(_dot(other, other))
    return max(-1.0, min(1.0, _dot(one, other) / lengths)) if lengths else 0.0


def _euclidean(one: Vector, other: Vector) -> float:
    import numpy as np

    difference = one.astype(np.float64) - other.astype(np.float64)
    return -math.sqrt(float(np.dot(difference, difference)))


def _manhattan(one: Vector, other: Vector) -> float:
    import numpy as np

    return -float(np.abs(one.astype(np.float64) - other.astype(np.float64)).sum())
