"""Sampling against transformers' own processors, and its statistics."""

from __future__ import annotations

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from runtime.sampling import penalize_repetition, sample, uniform
from runtime.types import SamplingParams


def params(**values: object) -> SamplingParams:
    defaults: dict[str, object] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return SamplingParams(max_new_tokens=1, **(defaults | values))  # type: ignore[arg-type]


def logits(seed: int = 0, size: int = 200) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


def test_uniform_is_fixed_by_its_arguments_and_spread_evenly() -> None:
    """Same arguments, same number; any argument changed, another; 10,000 of them fill [0, 1) evenly."""
    assert uniform(1, 2, 3) == uniform(1, 2, 3)
    assert len({uniform(1, 2, 3), uniform(2, 2, 3), uniform(1, 3, 3), uniform(1, 2, 4), uniform(-1, 2, 3)}) == 5
    draws = torch.tensor([uniform(5, 0, i) for i in range(10_000)])
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    assert torch.histc(draws, 10, 0, 1).sub(1000).abs().max() < 150


@pytest.mark.parametrize("seed", range(5))
def test_temperature_zero_is_the_likeliest_token(seed: int) -> None:
    """Greedy takes the maximum, whatever the other parameters and the draw."""
    scores = logits(seed)
    assert sample(scores, params(temperature=0, top_k=3, top_p=0.1), 0.99) == int(scores.argmax())


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 50, 0.9), (1.5, 5, 1.0), (0.3, 0, 0.5), (2.0, 1, 1.0), (1.0, 1000, 0.01)],
)
def test_the_distribution_is_that_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    """Over a fine grid of draws, each token comes up as often as transformers' warpers give it probability."""
    scores = logits(3)
    expected = scores.clone()[None]
    ids = torch.zeros((1, 1), dtype=torch.long)
    expected = TemperatureLogitsWarper(temperature)(ids, expected)
    if top_k:
        expected = TopKLogitsWarper(min(top_k, 200))(ids, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(ids, expected)
    probabilities = torch.softmax(expected[0].double(), -1)
    grid = 4000
    counts = torch.zeros(200)
    for i in range(grid):
        counts[sample(scores, params(temperature=temperature, top_k=top_k, top_p=top_p), (i + 0.5) / grid)] += 1
    assert (counts / grid - probabilities).abs().max() < 2 / grid


def test_ties_do_not_depend_on_the_sort() -> None:
    """Of equal logits, those with the smaller id are kept, in id order."""
    scores = torch.zeros(100)
    assert [sample(scores, params(top_k=4), u) for u in (0.0, 0.3, 0.6, 0.9)] == [0, 1, 2, 3]


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval_give_tokens(u: float) -> None:
    """The smallest and the largest draw stay inside the vocabulary."""
    assert 0 <= sample(logits(1), params(), u) < 200


def test_repetition_penalty_is_that_of_transformers() -> None:
    """Seen tokens' logits are divided or multiplied as CTRL's paper says, others untouched."""
    seen = torch.tensor([3, 7, 7, 11])
    expected = RepetitionPenaltyLogitsProcessor(1.3)(seen[None], logits(2)[None].clone())[0]
    assert torch.allclose(penalize_repetition(logits(2), seen, 1.3), expected)
    assert torch.equal(penalize_repetition(logits(2), seen, 1.0), logits(2))
