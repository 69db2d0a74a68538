"""runtime.engine.pooling: from the states of tokens to a vector."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from runtime.engine.pooling import EncoderHead
from runtime.model.encoder_config import EncoderConfig, EncoderStage

STATES = np.arange(12, dtype=np.float32).reshape(4, 3)


def pooled(*pooling: Any, unpooled: int = 0) -> list[float]:
    head = EncoderHead(EncoderConfig(("embed",), 8, pooling), {})
    span = head.outputs(len(STATES), unpooled)
    found: list[float] = head(STATES[span.start : span.stop], unpooled).tolist()
    return found


def test_each_pooling() -> None:
    """Each kind, computed by hand; several are concatenated."""
    assert pooled("cls") == [0, 1, 2]
    assert pooled("lasttoken") == [9, 10, 11]
    assert pooled("mean") == [4.5, 5.5, 6.5]
    assert pooled("max") == [9, 10, 11]
    assert pooled("mean_sqrt_len_tokens") == [9, 11, 13]
    assert pooled("weightedmean") == [6, 7, 8]
    assert pooled("cls", "mean") == [0, 1, 2, 4.5, 5.5, 6.5]


def test_a_prompt_may_be_left_out() -> None:
    """The tokens of a prompt are not pooled if the model says so; a text of nothing else keeps one."""
    assert pooled("mean", unpooled=2) == [7.5, 8.5, 9.5]
    assert pooled("cls", unpooled=1) == [3, 4, 5]
    assert pooled("weightedmean", unpooled=2) == pytest.approx(
        [(6 * 3 + 9 * 4) / 7, (7 * 3 + 10 * 4) / 7, (8 * 3 + 11 * 4) / 7]
    )
    assert pooled("mean", unpooled=9) == [9, 10, 11]


@pytest.mark.parametrize("activation", ["none", "tanh", "relu", "gelu", "sigmoid", "silu"])
def test_stages_are_those_of_torch(activation: Any) -> None:
    """A linear layer with each activation, a norm and scaling to length 1 give what torch computes."""
    random = np.random.default_rng(0)
    linear, norm = torch.nn.Linear(3, 5), torch.nn.LayerNorm(5, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    function = {"none": torch.nn.Identity(), "gelu": torch.nn.GELU(), "silu": torch.nn.SiLU()}.get(activation)
    stages = (
        EncoderStage("dense", 3, 5, True, activation),
        EncoderStage("norm", 5, 5, True),
        EncoderStage("normalize", 5, 5),
    )
    tensors = {
        f"stage.{n}.{name}": getattr(module, name).detach().numpy()
        for n, module in enumerate((linear, norm))
        for name in ("weight", "bias")
    }
    states = random.normal(size=(1, 3)).astype(np.float32)
    found = EncoderHead(EncoderConfig(("embed",), 8, ("mean",), stages), tensors)(states, 0)
    inner = linear(torch.tensor(states[0]))
    expected = torch.nn.functional.normalize(
        norm(getattr(torch, activation)(inner) if function is None else function(inner)), dim=0
    )
    assert np.abs(found - expected.detach().numpy()).max() < 1e-6
