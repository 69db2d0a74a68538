"""Rotary position embeddings (arXiv:2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor

Angles = tuple[Tensor, Tensor]  # cosines and sines, [M, 1, R] float32 each


def rotary_angles(
    positions: Tensor, long: Tensor, frequencies: Tensor, long_frequencies: Tensor | None, factor: float
) -> Angles:
    """Compute the cosines and sines of tokens' rotations.

    Args:
        positions: [M] positions of the tokens.
        long: [M] whether each token is of a long text; integers or booleans.
        frequencies: [R] radians per position of each pair.
        long_frequencies: [R] the same in long texts; None if they are the same.
        factor: factor that cosines and sines are multiplied by.

    Returns:
        [M, 1, R] each, float32.
    """
    if long_frequencies is not None:
        frequencies = torch.where(long.bool()[:, None, None], long_frequencies, frequencies)
    angles = positions[:, None, None].float() * frequencies
    return angles.cos() * factor, angles.sin() * factor


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Rotate the first 2 R values of each head, value i together with value i + R.

    Args:
        x: [M, N, D] queries or keys of N heads.
        angles: cosines and sines of R pairs from ``rotary_angles``.

    Returns:
        [M, N, D] float32.
    """
    cos, sin = angles
    pairs = cos.shape[-1]
    first, second, rest = torch.split(x.float(), [pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
