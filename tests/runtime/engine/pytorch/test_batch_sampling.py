"""All rows at once, against the definition row by row."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch

from runtime.engine.pytorch.batch_sampling import sample_rows
from runtime.engine.pytorch.sampling import Draw, adjust, log_probabilities, sample
from runtime.engine.sequence import Sampled
from runtime.errors import InternalError
from runtime.types import SamplingParams

ENDS = (0.0, 1 - 2**-53)


def some_draw(rng: random.Random, vocabulary: int) -> Draw:
    """Any mixture of parameters, their edges among them."""

    def ids(count: int) -> list[int]:
        return rng.sample(range(vocabulary), count)

    params = SamplingParams(
        max_new_tokens=1,
        temperature=rng.choice([0, 1e-4, 0.3, 0.7, 1, 2]),
        top_k=rng.choice([0, 0, 1, 5, 50, 255, 256, 257, 400, 10**6]),
        top_p=rng.choice([1, 1, 0.99, 0.9, 0.5, 0.01, 1e-9]),
        min_p=rng.choice([0, 0, 0.001, 0.05, 0.5, 1]),
        repetition_penalty=rng.choice([1, 1.3, 0.8]),
        presence_penalty=rng.choice([0, 0.5, -1]),
        frequency_penalty=rng.choice([0, 0.3]),
        logit_bias=tuple((token, rng.uniform(-100, 100)) for token in ids(rng.choice([0, 3]))),
        logprobs=rng.choice([None, 0, 3, 20]),
    )
    tokens = [rng.randrange(vocabulary) for _ in range(10)]
    banned = range(vocabulary) if rng.random() < 0.05 else ids(rng.choice([0, 2]))
    mask = None
    if rng.random() < 0.4:
        share = rng.choice([0, 0.01, 0.5, 0.999])
        bits = np.array([rng.random() < share for _ in range(-(-vocabulary // 32) * 32)])
        bits[rng.randrange(vocabulary)] = True
        mask = np.packbits(bits, bitorder="little").view(np.int32)
    u = rng.choice([*ENDS, *(rng.random() for _ in range(4))])
    return Draw(params, u, tokens, Counter(tokens[4:]), banned, params.logit_bias, mask)


def check(logits: torch.Tensor, draws: list[Draw]) -> None:
    before = logits.clone()
    results = sample_rows(logits, draws)
    assert torch.equal(logits, before)
    for row, draw, result in zip(logits, draws, results, strict=True):
        assert isinstance(result, Sampled)
        token = sample(adjust(row, draw), draw.params, draw.u)
        assert result.id == token, draw
        if draw.params.logprobs is None:
            assert result.logprob is None
            assert result.top == ()
        else:
            own, top = log_probabilities(row, token, draw.params.logprobs)
            assert result.logprob == pytest.approx(own, abs=1e-5)
            assert [token for token, _ in result.top] == [token for token, _ in top]
            assert [value for _, value in result.top] == pytest.approx([value for _, value in top], abs=1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_definition_row_by_row(seed: int) -> None:
    """Any parameters beside any others: same tokens, same log-probabilities, whether logits are close, far or equal."""
    rng = random.Random(seed)
    vocabulary = rng.choice([7, 200, 300, 1000, 3000])
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rng.choice([1, 3, 9]), vocabulary, generator=generator) * rng.choice([0, 0.1, 1, 3, 10])
    if rng.random() < 0.5:
        logits = logits.bfloat16().float()  # full of ties
    check(logits, [some_draw(rng, vocabulary) for _ in logits])


@pytest.mark.parametrize("top_p", [1.0, 0.999])
def test_draws_behind_the_candidates(top_p: float) -> None:
    """In a nearly flat distribution most draws fall on tokens that are not among the first looked at."""
    logits = torch.randn(1, 2000, generator=torch.Generator().manual_seed(1)).expand(20, -1) * 0.01
    params = SamplingParams(1, temperature=1, top_k=0, top_p=top_p)
    check(logits.contiguous(), [Draw(params, i / 20) for i in range(20)])


def test_a_row_does_not_depend_on_the_others() -> None:
    """Alone or among others, in any order, a row gets the same answer to the last bit."""
    rng = random.Random(5)
    logits = torch.randn(12, 1000, generator=torch.Generator().manual_seed(5)) * 4
    draws = [some_draw(rng, 1000) for _ in range(12)]
    together = sample_rows(logits, draws)
    assert [sample_rows(logits[i : i + 1], draws[i : i + 1])[0] for i in range(12)] == together
    assert sample_rows(logits.flip(0), draws[::-1]) == together[::-1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_no_numbers_fails_alone(bad: float, temperature: float) -> None:
    """Its answer is an error, the others' answers are what they would be without it; -inf is a number here."""
    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(2))
    logits[0, 1:3] = float("-inf")
    draws = [Draw(SamplingParams(1, temperature=temperature, logprobs=2), 0.3)] * 3
    expected = sample_rows(logits, draws)
    logits[1, 7] = bad
    results = sample_rows(logits, draws)
    assert isinstance(results[1], InternalError)
    assert [results[0], results[2]] == [expected[0], expected[2]]


def test_sixteen_bit_logits() -> None:
    """Logits of a 16-bit model are widened first."""
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(4)).bfloat16()
    draws = [Draw(SamplingParams(1, logprobs=3), 0.4)] * 4
    assert sample_rows(logits, draws) == sample_rows(logits.float(), draws)
