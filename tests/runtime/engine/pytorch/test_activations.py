"""Activation functions: torch's values, and bits that do not depend on where a value is."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from runtime.engine.pytorch.activations import activation
from runtime.model.config import Activation

EXPECTED = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x) ** 2,
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", get_args(Activation))
def test_values_are_torchs(kind: Activation, device: str) -> None:
    """The composed functions and those of other devices, for ordinary, large and infinite values."""
    x = torch.cat([torch.linspace(-12, 12, 1001), torch.tensor([-1e4, -200.0, 200.0, 1e4])])
    got = activation(kind, torch.device(device))(x)
    assert torch.allclose(got, EXPECTED[kind](x), atol=1e-6, rtol=1e-5)
    assert got.isfinite().all()


@pytest.mark.parametrize("kind", get_args(Activation))
def test_a_value_has_the_same_bits_anywhere(kind: Activation) -> None:
    """At the start, in the middle and at the end of a tensor, where torch's own functions differ."""
    function = activation(kind, torch.device("cpu"))
    x = 3 * torch.randn(4133, generator=torch.Generator().manual_seed(0))
    expected = function(x)
    for length in (1, 7, 15, 17, 100, 4000):
        for start in (0, 1, 13, 31):
            assert torch.equal(function(x[start : start + length].clone()), expected[start : start + length])
