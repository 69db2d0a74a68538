"""The bias of attention scores by relative position, in T5's buckets (arXiv:1910.10683, section 2.1)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_MOST = 128  # distance from which on all are in the last bucket, in MPNet as in T5


def buckets(distances: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the bucket of each distance, for attention in both directions.

    Half of the buckets are for keys behind the query; of each half, one half is for single distances and the other for
    ranges that grow with the logarithm.

    Args:
        distances: positions of keys less those of their queries.
        count: number of buckets.
    """
    half = count // 2
    exact = half // 2
    away = np.abs(distances)
    # In float32, as transformers computes it: a distance at the edge of a range must fall to the same side.
    logs = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(_MOST / exact))
    far = np.minimum(exact + (logs * np.float32(half - exact)).astype(np.int64), half - 1)
    return np.where(away < exact, away, far) + np.where(distances > 0, half, 0)


def bias_by_distance(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [heads, 2 R + 1] the bias at the distances -R to R, beyond which it does not change.

    Args:
        table: [buckets, heads] the bias of each bucket.
    """
    distances = np.arange(-_MOST, _MOST + 1)
    return np.ascontiguousarray(table[buckets(distances, len(table))].T, np.float32)
