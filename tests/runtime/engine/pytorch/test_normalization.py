"""Norms of the residual stream, and of queries and keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runtime.engine.pytorch.normalization import Norms
from tests.support.random_decoder import describe


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_rows_are_normalized(kind: Any, biased: bool) -> None:
    """By their root mean square or their standard deviation, in float32 whatever the weights' type is."""
    weights = {"final_norm.weight": torch.rand(48).bfloat16()}
    if biased:
        weights["final_norm.bias"] = torch.rand(48).bfloat16()
    x = torch.randn(3, 48, dtype=torch.bfloat16)
    centred = x.double() - (x.double().mean(1, keepdim=True) if kind == "layer" else 0)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * weights["final_norm.weight"]
    got = Norms(describe(norm=kind), weights)(x, "final_norm")
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), expected + weights.get("final_norm.bias", 0), atol=1e-5)


@pytest.mark.parametrize("qk_norm", ["head", "full"])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_padding_of_heads_does_not_count(kind: Any, qk_norm: Any) -> None:
    """Heads of 10 values in 16 are normalized as heads of 10, each or all together, and their padding stays zero."""
    weight = torch.rand(4, 16)
    weight[:, 10:] = 0
    heads = torch.randn(3, 4, 16)
    heads[..., 10:] = 0
    norms = Norms(describe(norm=kind, qk_norm=qk_norm, head_dim=10), {"0.q_norm.weight": weight.flatten()})
    rows = heads[..., :10].double() if qk_norm == "head" else heads[..., :10].double().reshape(3, 1, 40)
    if kind == "layer":
        rows = rows - rows.mean(-1, keepdim=True)
    expected = (rows / (rows.square().mean(-1, keepdim=True) + 1e-5).sqrt()).view(3, 4, 10) * weight[:, :10]
    got = norms.heads(heads, "0.q_norm")
    assert torch.allclose(got[..., :10].double(), expected, atol=1e-5)
    assert not got[..., 10:].any()
