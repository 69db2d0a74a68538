"""Rotary position embeddings."""

from __future__ import annotations

import math

import torch

from runtime.engine.pytorch.rotary import rotary_angles, rotate


def test_pairs_are_rotated_by_their_positions_angle() -> None:
    """Value i with value i + R, by position x frequency, times the factor; the values behind them are kept."""
    x = torch.tensor([[[3.0, 1.0, 4.0, 2.0, 7.0, 8.0]], [[3.0, 1.0, 4.0, 2.0, 7.0, 8.0]]])
    got = rotate(x, rotary_angles(torch.tensor([0, 5]), torch.tensor([math.pi / 10, 0.0]), 2.0))
    assert got.dtype == torch.float32
    assert torch.allclose(got[0, 0], torch.tensor([6.0, 2.0, 8.0, 4.0, 7.0, 8.0]))
    assert torch.allclose(got[1, 0], torch.tensor([-8.0, 2.0, 6.0, 4.0, 7.0, 8.0]), atol=1e-5)  # a quarter turn
