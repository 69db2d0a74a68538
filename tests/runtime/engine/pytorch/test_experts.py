"""Mixtures of experts: the choice of the experts, and outputs that do not depend on the other tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from runtime.encoder_types import EncoderInput
from runtime.engine.pytorch import experts as experts_module
from runtime.engine.pytorch.activations import activation
from runtime.engine.pytorch.experts import Experts, choose
from runtime.engine.pytorch.runner import TorchRunner
from runtime.engine.sequence import Row
from runtime.model.config import DecoderConfig, ExpertsConfig
from tests.support.decoders import logits_of, placed, prompt
from tests.support.dense_decoder import DenseDecoder
from tests.support.random_decoder import random_decoder

MIXTURES = ["mixtral", "qwen2_moe", "lfm2_moe", "odd-experts"]
CPU = torch.device("cpu")


def experts_of(config: DecoderConfig, weights: dict[str, Tensor], tile: int = 8) -> Experts:
    """Return the mixtures of a decoder."""
    return Experts(config, weights, activation(config.activation, CPU), tile)


def test_the_largest_scores_are_chosen_and_weighted() -> None:
    """Softmax over all experts, and only divided by the sum of the chosen ones where the configuration says so."""
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    shares = logits.softmax(1)[0]
    chosen, factors = choose(logits, ExpertsConfig(4, 2, 8), None)
    assert chosen.tolist() == [[1, 3]]
    assert torch.allclose(factors, shares[[1, 3]])
    chosen, factors = choose(logits, ExpertsConfig(4, 2, 8, normalized=True, scale=3.0), None)
    assert chosen.tolist() == [[1, 3]]
    assert torch.allclose(factors, 3 * torch.tensor([3.0, 2.0]).softmax(0))


def test_a_correction_changes_the_choice_and_not_the_factors() -> None:
    """The factors are the sigmoids of the chosen experts' logits."""
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    config = ExpertsConfig(4, 2, 8, scores="sigmoid", correction=True)
    chosen, factors = choose(logits, config, torch.tensor([0.9, 0.0, 0.0, -0.9]))
    assert chosen.tolist() == [[0, 1]]
    assert torch.allclose(factors, torch.sigmoid(torch.tensor([0.0, 3.0])))


@pytest.mark.parametrize("count", [7, 64, 300])
def test_of_equal_scores_the_first_are_chosen(count: int) -> None:
    """Whatever the number of experts and of tokens, and also where a score is not the largest."""
    logits = torch.zeros(33, count)
    logits[:, -1] = 1
    chosen, _ = choose(logits, ExpertsConfig(count, 5, 8), None)
    assert chosen.tolist() == [[count - 1, 0, 1, 2, 3]] * 33


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MIXTURES)
def test_a_token_does_not_depend_on_the_others(name: str, dtype: torch.dtype) -> None:
    """In any number of tokens, at any place, and beside many that choose the same experts, it gives the same bits."""
    config, weights = random_decoder(name, dtype)
    experts = experts_of(config, weights)
    layer = max(i for i, described in enumerate(config.layers) if described.experts)
    x = torch.randn(344, config.hidden, generator=torch.Generator().manual_seed(1))
    x[100:200] = x[100]  # one hundred tokens with the same experts
    expected, share = experts(x, layer)
    assert expected.dtype == torch.float32
    for first, last in [(0, 8), (96, 104), (96, 256), (8, 24), (336, 344)]:
        part, part_share = experts(x[first:last], layer)
        assert torch.equal(part, expected[first:last])
        assert (share is None) == (part_share is None)
        assert share is None or part_share is None or torch.equal(part_share, share[first:last])
    order = torch.randperm(344, generator=torch.Generator().manual_seed(2))
    assert torch.equal(experts(x[order], layer)[0], expected[order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MIXTURES)
def test_all_experts_for_all_tokens_give_the_same_bits(name: str, dtype: torch.dtype) -> None:
    """The operations of captured steps, also where an expert that a token did not choose gives infinities."""
    config, weights = random_decoder(name, dtype)
    assert config.experts is not None
    layer = max(i for i, described in enumerate(config.layers) if described.experts)
    weights[f"{layer}.experts_down"].view(config.experts.count, -1)[0] = float("inf")
    experts = experts_of(config, weights)
    x = torch.randn(40, config.hidden, generator=torch.Generator().manual_seed(1))
    expected, share = experts(x, layer)
    assert expected.isfinite().all(1).any() == (config.experts.count > config.experts.per_token)
    got, got_share = experts(x, layer, every=True)
    assert torch.equal(got.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert (share is None) == (got_share is None)
    assert share is None or got_share is None or torch.equal(share, got_share)


@pytest.mark.parametrize("tile", [0, 8])
def test_numbers_that_are_not_finite_stay_with_their_token(tile: int) -> None:
    """The tokens beside it get what they get without it."""
    experts = experts_of(*random_decoder("lfm2_moe"), tile)
    x = torch.randn(16, 48, generator=torch.Generator().manual_seed(1))
    expected, _ = experts(x, 2)
    x[3, 5], x[4, 5] = float("nan"), float("inf")
    got, _ = experts(x, 2)
    assert not got[3:5].isfinite().any(1).all()
    others = [i for i in range(16) if i not in (3, 4)]
    assert torch.allclose(got[others], expected[others], atol=1e-6)


@pytest.mark.parametrize("rounded", ["router", "input"])
def test_routers_are_computed_in_float32_in_sixteen_bits(rounded: str) -> None:
    """Differences of the router's weights or of its input that bfloat16 rounds away decide between two experts."""
    config, weights = random_decoder("lfm2_moe", torch.bfloat16)
    assert config.experts is not None
    config = replace(config, experts=replace(config.experts, per_token=1))
    found = []
    for step in (2**-12, -(2**-12)):
        router, x = torch.zeros(20, 48), torch.ones(8, 48)
        router[3, 0], router[11, 1] = 1, 1
        if rounded == "router":
            router[11, 1] += step
        else:
            x[:, 1] += step
        weights["2.router"], weights["2.router_correction"] = router, torch.zeros(20)
        found.append(experts_of(config, weights)(x, 2)[0])
    assert (found[0] - found[1]).abs().max() > 0.1


def test_a_runner_reads_the_precise_correction() -> None:
    """A change of a correction that bfloat16 cannot represent changes a 16-bit model's choice, and so its logits."""
    config, weights = random_decoder("lfm2_moe", torch.bfloat16)
    weights["2.router"] = torch.zeros(20, 48)
    tokens = prompt(1, 20)
    found = []
    for first in (0, 1):
        correction = torch.ones(20)
        correction[[first, 7, 9]] += 2**-12
        weights["2.router_correction"] = correction
        found.append(logits_of(TorchRunner(config, dict(weights), kv_bytes=2**22), placed(tokens, range(2))))
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("name", MIXTURES)
def test_padding_needs_no_other_experts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens that fill up a step choose the experts of its first one, so that no more weights are read."""
    plain = experts_module.choose
    chosen: list[Tensor] = []

    def recorded(*arguments: Any) -> tuple[Tensor, Tensor]:
        found = plain(*arguments)
        chosen.append(found[0])
        return found

    monkeypatch.setattr(experts_module, "choose", recorded)
    config, weights = random_decoder(name)
    assert config.experts is not None
    runner = TorchRunner(config, weights, kv_bytes=2**22)
    sequence = placed(prompt(3, 30), range(2))
    runner.forward([Row(sequence, 0, sequence.tokens[:-1], samples=0)])
    chosen.clear()
    runner.forward([Row(sequence, 29, sequence.tokens[-1:])])
    assert len(chosen) == sum(layer.experts for layer in config.layers)
    for rows in chosen:
        assert len(rows) == 8
        assert torch.equal(rows, rows[:1].expand_as(rows))


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_texts_to_embed(name: str) -> None:
    """The states of a mixture's tokens lead to the dense decoder's logits, and have the same bits alone."""
    config, weights = random_decoder(name)
    head = weights["embed" if config.tied else "head"]
    texts = [EncoderInput(prompt(seed, length)) for seed, length in enumerate((30, 1, 45))]
    encoder = TorchRunner(config, dict(weights), kv_bytes=2**20).encoder(256, None)
    found = encoder.states(texts, [range(len(text.ids)) for text in texts])
    for text, states in zip(texts, found, strict=True):
        expected = DenseDecoder(config, weights).logits(text.ids)
        assert (torch.from_numpy(states) @ head.T - expected).abs().max() < 3e-4
        (alone,) = encoder.states([text], [range(len(text.ids))])
        assert alone.tobytes() == states.tobytes()
