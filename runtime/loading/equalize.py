"""Rescales MLPs for 8-bit quantization."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_Read = Callable[[], Array]


class Factors:
    """Rescales a gated MLP so that it loses less in 8-bit quantization, without changing its results.

    The factor of the gate passes linearly from a row of the up projection to a column of the down projection, so the
    two may be scaled inversely until their norms are equal (arXiv:1906.04721, section 4.1). The factors are powers of
    two, which cause no rounding in any floating-point type. They are computed when a tensor is first read.

    Args:
        up: reads the up projection [I, H].
        down: reads the down projection [H, I].
    """

    def __init__(self, up: _Read, down: _Read) -> None:
        self._up = up
        self._down = down

    @functools.cached_property
    def values(self) -> Array:
        """The factors [I], by which columns of the down projection are multiplied and rows of the other divided."""
        with np.errstate(divide="ignore", invalid="ignore"):
            rows, columns = np.linalg.norm(self._up(), axis=1), np.linalg.norm(self._down(), axis=0)
            # A row or column of zeros is not scaled.
            shift = np.nan_to_num(0.5 * np.log2(rows / columns), nan=0.0, posinf=0.0, neginf=0.0)
        factors: Array = np.exp2(np.round(shift - shift.mean())).astype(np.float32)
        return factors

    def up(self, read: _Read) -> _Read:
        """Return a function that reads the rescaled rows of the up projection, or of its bias."""

        def rescaled() -> Array:
            values = read()
            result: Array = values / self.values.reshape(-1, *[1] * (values.ndim - 1))
            return result

        return rescaled

    def down(self) -> Array:
        """Return the rescaled down projection."""
        result: Array = self._down() * self.values
        return result
