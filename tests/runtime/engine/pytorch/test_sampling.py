"""Sampling against transformers' own processors, and its statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from runtime.engine.pytorch.sampling import Draw, adjust, log_probabilities, penalize_repetition, sample
from runtime.types import SamplingParams


def params(**values: object) -> SamplingParams:
    defaults: dict[str, object] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return SamplingParams(max_new_tokens=1, **(defaults | values))  # type: ignore[arg-type]


def logits(seed: int = 0, size: int = 200) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("seed", range(5))
def test_temperature_zero_is_the_likeliest_token(seed: int) -> None:
    """Greedy takes the maximum, whatever the other parameters and the draw."""
    scores = logits(seed)
    assert sample(scores, params(temperature=0, top_k=3, top_p=0.1, min_p=0.5), 0.99) == int(scores.argmax())


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.7, 50, 0.9, 0.0),
        (1.5, 5, 1.0, 0.0),
        (0.3, 0, 0.5, 0.0),
        (2.0, 1, 1.0, 0.0),
        (1.0, 1000, 0.01, 0.0),
        (1.0, 0, 1.0, 0.1),
        (2.0, 40, 0.8, 0.05),
        (1.0, 0, 1.0, 1.0),
    ],
)
def test_the_distribution_is_that_of_transformers(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    """Over a fine grid of draws, each token comes up as often as transformers' warpers give it probability."""
    scores = logits(3)
    expected = scores.clone()[None]
    ids = torch.zeros((1, 1), dtype=torch.long)
    expected = TemperatureLogitsWarper(temperature)(ids, expected)
    if top_k:
        expected = TopKLogitsWarper(min(top_k, 200))(ids, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(ids, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(ids, expected)
    probabilities = torch.softmax(expected[0].double(), -1)
    grid = 4000
    counts = torch.zeros(200)
    chosen = params(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for i in range(grid):
        counts[sample(scores, chosen, (i + 0.5) / grid)] += 1
    assert (counts / grid - probabilities).abs().max() < 2 / grid


def test_ties_do_not_depend_on_the_sort() -> None:
    """Of equal logits, those with the smaller id are kept, in id order."""
    scores = torch.zeros(100)
    assert [sample(scores, params(top_k=4), u) for u in (0.0, 0.3, 0.6, 0.9)] == [0, 1, 2, 3]


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval_give_tokens(u: float) -> None:
    """The smallest and the largest draw stay inside the vocabulary."""
    assert 0 <= sample(logits(1), params(), u) < 200


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_everything_is_banned_some_token_comes_out(temperature: float) -> None:
    """A row without any possible token ends as a token, not as an exception."""
    nothing = adjust(logits(), Draw(params(), 0.5, banned=range(200)))
    assert sample(nothing, params(temperature=temperature), 0.5) == 0


def test_repetition_penalty_is_that_of_transformers() -> None:
    """Seen tokens' logits are divided or multiplied as CTRL's paper says, others untouched."""
    seen = torch.tensor([3, 7, 7, 11])
    expected = RepetitionPenaltyLogitsProcessor(1.3)(seen[None], logits(2)[None].clone())[0]
    assert torch.allclose(penalize_repetition(logits(2), seen, 1.3), expected)
    assert torch.equal(penalize_repetition(logits(2), seen, 1.0), logits(2))


def test_adjusting_goes_in_its_order() -> None:
    """Bias first, then the repetition penalty on what it made, then presence and frequency, and a ban beats all."""
    raw = torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0])
    changes = params(
        logit_bias=((0, 3.0), (4, 100.0)), repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25
    )
    got = adjust(raw, Draw(changes, 0, tokens=[0, 2, 2, 3], counts={2: 2}, banned=[4], bias=changes.logit_bias))
    assert got.tolist() == [(1 + 3) / 2, 2.0, -1 * 2 - 0.5 - 0.25 * 2, 0.25, float("-inf")]
    assert raw.tolist() == [1.0, 2.0, -1.0, 0.5, 3.0]


def test_a_mask_leaves_the_ids_with_a_bit() -> None:
    """Bit i of word j is id 32 j + i; bits behind the vocabulary have no effect."""
    mask = np.array([1 << 3, -1], np.int32)
    got = adjust(torch.zeros(35), Draw(params(), 0, mask=mask))
    assert torch.isfinite(got).nonzero().flatten().tolist() == [3, 32, 33, 34]


def test_log_probabilities_are_of_the_logits_as_they_are() -> None:
    """They are the log-softmax, and the likeliest come best first, of equal ones the smaller id."""
    scores = torch.tensor([0.0, 2.0, 1.0, 2.0])
    expected = torch.log_softmax(scores, 0).tolist()
    own, top = log_probabilities(scores, 2, 3)
    assert own == expected[2]
    assert top == ((1, expected[1]), (3, expected[3]), (2, expected[2]))
    assert log_probabilities(scores, 0, 0) == (expected[0], ())
