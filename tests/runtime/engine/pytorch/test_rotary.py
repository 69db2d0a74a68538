"""Rotary position embeddings."""

from __future__ import annotations

import math

import torch

from runtime.engine.pytorch.rotary import rotary_angles, rotate


def test_pairs_are_rotated_by_their_positions_angle() -> None:
    """Value i with value i + R, by position x frequency, times the factor; the values behind them are kept."""
    x = torch.tensor([[[3.0, 1.0, 4.0, 2.0, 7.0, 8.0]], [[3.0, 1.0, 4.0, 2.0, 7.0, 8.0]]])
    short = torch.tensor([math.pi / 10, 0.0])
    got = rotate(x, rotary_angles(torch.tensor([0, 5]), torch.zeros(2), short, None, 2.0))
    assert got.dtype == torch.float32
    assert torch.allclose(got[0, 0], torch.tensor([6.0, 2.0, 8.0, 4.0, 7.0, 8.0]))
    assert torch.allclose(got[1, 0], torch.tensor([-8.0, 2.0, 6.0, 4.0, 7.0, 8.0]), atol=1e-5)  # a quarter turn


def test_long_texts_have_other_frequencies() -> None:
    """Each token's text decides, so that short and long texts share a step."""
    short, long = torch.tensor([0.0]), torch.tensor([math.pi / 2])
    cos, sin = rotary_angles(torch.tensor([1, 1]), torch.tensor([0, 1]), short, long, 1.0)
    assert torch.allclose(cos.flatten(), torch.tensor([1.0, 0.0]), atol=1e-6)
    assert torch.allclose(sin.flatten(), torch.tensor([0.0, 1.0]), atol=1e-6)
