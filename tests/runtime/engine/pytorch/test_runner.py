"""The PyTorch runner: the right tokens, the same bits whatever else runs, and rows that fail alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from runtime.engine.block_pool import BlockPool
from runtime.engine.pytorch import runner as runner_module
from runtime.engine.pytorch.runner import TorchRunner
from runtime.engine.pytorch.sampling import Draw, adjust, log_probabilities, sample
from runtime.engine.rng import uniform
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import Row, Sampled, Sequence
from runtime.errors import InternalError
from runtime.model.config import DecoderConfig
from runtime.types import SamplingParams
from tests.support.decoders import GREEDY, embedded_shape, logits_of, placed, prompt
from tests.support.dense_decoder import DenseDecoder
from tests.support.random_decoder import DESCRIPTIONS, random_decoder
from tests.support.soak import soak

Weights = dict[str, torch.Tensor]
COARSE = [
    "llama",
    "gpt2",
    "gemma2",
    "gemma3",
    "bloom",
    "lfm2",
    "odd",
    "mixtral",
    "qwen2_moe",
    "lfm2_moe",
    "odd-experts",
]


@pytest.fixture(params=[*DESCRIPTIONS, *(f"{name}-bf16" for name in COARSE), "embedded", "embedded-bf16"])
def decoder(request: pytest.FixtureRequest) -> tuple[DecoderConfig, Weights]:
    """Each description in float32, and some in bfloat16."""
    dtype = torch.bfloat16 if request.param.endswith("-bf16") else torch.float32
    name = request.param.removesuffix("-bf16")
    return embedded_shape(dtype) if name == "embedded" else random_decoder(name, dtype)


def run(runner: TorchRunner, sequences: list[Sequence], rng: random.Random | None = None, **options: Any) -> list[Any]:
    """Tokens and log-probabilities of each sequence, run together, arriving at random moments."""
    pool = BlockPool(runner.blocks, runner.block_tokens, cache_blocks=options.pop("cache_blocks", 0))
    limits = {"max_rows": 16, "max_tokens": runner.max_tokens, "token_budget": 64}
    scheduler = Scheduler(pool, eos=frozenset({0}), **(limits | options))
    waiting = list(sequences)
    if rng is not None:
        rng.shuffle(waiting)
    kept: dict[Sequence, list[Sampled]] = {sequence: [] for sequence in sequences}
    while waiting or scheduler.busy:
        while waiting and (rng is None or rng.random() < 0.5):
            scheduler.add(waiting.pop())
        plan = scheduler.schedule()
        for source, target in plan.copies:
            runner.copy_block(source, target)
        if plan.rows:
            for outcome in scheduler.commit(plan.rows, runner.step(plan.rows)):
                assert outcome.error is None
                kept[outcome.sequence] += outcome.tokens
    return [kept[sequence] for sequence in sequences]


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_greedy_tokens_are_those_of_the_dense_decoder(name: str) -> None:
    """Prompts that run together continue as the dense decoder continues each of them."""
    config, weights = random_decoder(name)
    dense = DenseDecoder(config, weights)
    runner = TorchRunner(config, weights, kv_bytes=2**24)
    prompts = [prompt(seed, length) for seed, length in enumerate([1, 5, 33, 140, 290])]
    params = SamplingParams(max_new_tokens=5, temperature=0)
    sequences = [Sequence(tokens, params, 0) for tokens in prompts]
    results = run(runner, sequences, short_context=config.short_context)
    for tokens, result in zip(prompts, results, strict=True):
        assert [choice.id for choice in result] == dense.greedy(tokens, 5, end=0)


def test_chunks_and_decoding_give_the_bits_of_one_step(decoder: tuple[DecoderConfig, Weights]) -> None:
    """A prompt at once, in chunks of any size, token by token, and after a prefix that another sequence computed."""
    runner = TorchRunner(*decoder, kv_bytes=2**24)
    tokens = prompt(1, 300)
    expected = logits_of(runner, placed(tokens, range(20)))
    for chunk in (7, 64, 100):
        assert torch.equal(logits_of(runner, placed(tokens, range(20, 40)), chunk=chunk), expected)
    for chunk in (1, 100):  # after a prefix that another sequence computed
        sequence = placed(tokens, [*range(17), 40, 41])
        assert torch.equal(logits_of(runner, sequence, start=272, chunk=chunk), expected[272:])


def test_rows_do_not_depend_on_each_other(decoder: tuple[DecoderConfig, Weights]) -> None:
    """A decoding row, a row with drafts and a chunk give the bits they give alone: beside any others, in any order."""
    runner = TorchRunner(*decoder, kv_bytes=2**25)
    rng = random.Random(3)
    rows = []
    for i in range(20):
        tokens = prompt(i, rng.choice([3, 20, 90, 200, 400]))
        sequence = placed(tokens, range(25 * i, 25 * i + 25))
        fed = min(len(tokens) - 1, rng.choice([1, 1, 1, 4, 40]))
        start = len(tokens) - fed
        if start:
            runner.forward([Row(sequence, 0, list(tokens[:start]), samples=0)])
        rows.append(Row(sequence, start, list(tokens[start:]), samples=fed))
    alone = [runner.forward([row])[0].clone() for row in rows]
    for count in (2, 7, 20):
        some = rng.sample(range(20), count)
        together = runner.forward([rows[i] for i in some])[0]
        assert torch.equal(together, torch.cat([alone[i] for i in some]))


def test_padded_decode_steps_give_the_same_bits(decoder: tuple[DecoderConfig, Weights]) -> None:
    """The shapes that a GPU captures, run without capture: rows and lengths padded to powers of two."""
    config, weights = decoder
    plain = TorchRunner(config, dict(weights), kv_bytes=2**25, graphs=False)
    padded = TorchRunner(config, weights, kv_bytes=2**25, graphs=True)
    rows = []
    for i, length in enumerate([5, 17, 140, 33, 390]):
        sequence = placed(prompt(i, length), range(25 * i, 25 * i + 25))
        rows.append(Row(sequence, length - 1, [sequence.tokens[-1]]))
        for runner in (plain, padded):
            runner.forward([Row(sequence, 0, sequence.tokens[:-1], samples=0)])
    assert torch.equal(plain.forward(rows)[0], padded.forward(rows)[0])
    assert torch.equal(plain.forward(rows[:1])[0], padded.forward(rows[:1])[0])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "odd", "lfm2", "qwen2_moe", "lfm2_moe"])
def test_mixed_requests_alone_and_together(name: str) -> None:
    """Requests of all kinds: alone, and at random moments among the others with drafts and cached prefixes on."""
    config, weights = random_decoder(name)
    rng = random.Random(7)
    shared = prompt(99, 70)

    def requests() -> list[Sequence]:
        rng = random.Random(11)
        made = []
        for i in range(soak(40, 12)):
            start = shared[: rng.choice([0, 40, 70])]
            pattern = prompt(i, rng.choice([2, 5])) * rng.choice([1, 8])  # repetition is what drafts come from
            params = SamplingParams(
                max_new_tokens=rng.choice([1, 10, 25]),
                temperature=rng.choice([0, 0, 0.4, 1.0]),
                top_k=rng.choice([0, 20]),
                top_p=rng.choice([1.0, 0.8]),
                min_p=rng.choice([0.0, 0.1]),
                repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
                presence_penalty=rng.choice([0.0, 0.0, 0.5]),
                logit_bias=rng.choice([(), ((7, 5.0), (0, -100.0))]),
                min_new_tokens=rng.choice([0, 5]),
                logprobs=rng.choice([None, 2]),
            )
            made.append(Sequence(start + pattern, params, seed=i))
        return made

    together = TorchRunner(config, dict(weights), kv_bytes=2**23)
    alone = TorchRunner(config, weights, kv_bytes=2**23)
    expected = [run(alone, [sequence])[0] for sequence in requests()]
    options: list[dict[str, Any]] = [{}, {"cache_blocks": 40, "speculate": 4, "speculate_rows": 16, "token_budget": 24}]
    for option in options:
        assert run(together, requests(), rng, **option) == expected


def test_choices_are_those_of_the_definition() -> None:
    """Each choice is ``sample`` of the row's logits with its own parameters and its position's random number."""
    runner = TorchRunner(*random_decoder("llama"), kv_bytes=2**22)
    params = SamplingParams(9, temperature=1.2, top_k=30, presence_penalty=0.7, repetition_penalty=1.1, logprobs=3)
    sequence = placed(prompt(2, 30), range(4), params)
    sequence.tokens += [5, 9, 5]
    sequence.counts.update([5, 9, 5])
    sequence.seed, sequence.number = 77, 2
    row = Row(sequence, 0, list(sequence.tokens), banned=(4,))
    [[chosen]] = runner.step([row])  # type: ignore[misc]
    raw = runner.forward([row])[0][0]
    draw = Draw(params, uniform(77, 2, 3), sequence.tokens, sequence.counts, (4,))
    assert chosen.id == sample(adjust(raw, draw), params, draw.u)
    own, top = log_probabilities(raw, chosen.id, 3)
    assert chosen.logprob == pytest.approx(own, abs=1e-6)
    assert [token for token, _ in chosen.top] == [token for token, _ in top]


def test_drafts_are_chosen_behind_each_of_them() -> None:
    """The choices behind a known token and its drafts are those that decoding these tokens one by one gives."""
    runner = TorchRunner(*random_decoder("gpt2"), kv_bytes=2**22)
    params = SamplingParams(9, temperature=1.0)
    tokens = prompt(4, 20)
    sequence = placed(tokens, range(4), params)
    runner.step([Row(sequence, 0, list(tokens[:-1]), samples=0)])
    [together] = runner.step([Row(sequence, 19, [tokens[-1], 8, 9], drafts=2, samples=3)])
    one_by_one = []
    for draft in (8, 9, 0):
        [choices] = runner.step([Row(sequence, len(sequence.tokens) - 1, sequence.tokens[-1:])])
        one_by_one += choices  # type: ignore[operator]
        sequence.tokens.append(draft)
    assert together == one_by_one


@pytest.mark.parametrize("samples", [0, 1])
def test_a_row_whose_numbers_are_not_finite_fails_alone(samples: int) -> None:
    """A planted fault reaches neither the rows beside it nor who gets its blocks next, and is told in any chunk."""
    config, weights = random_decoder("llama")
    weights["embed"][13] = float("nan")
    weights["head"] = weights["embed"].nan_to_num()
    weights["head"][13] = 0
    runner = TorchRunner(_untied(config), weights, kv_bytes=2**22)
    good = placed((1, 2, 3, 4), [0])
    expected = runner.step([Row(good, 0, [1, 2, 3, 4])])
    bad = placed((5, 13, 6, 7, 8), [1])
    first, second = runner.step([Row(bad, 0, [5, 13, 6], samples=samples), Row(good, 0, [1, 2, 3, 4])])
    assert isinstance(first, InternalError)
    assert [second] == expected
    assert runner.step([Row(placed((1, 2, 3, 4), [1]), 0, [1, 2, 3, 4])]) == expected
    assert isinstance(runner.step([Row(placed((13,), [2]), 0, [13])])[0], InternalError)


def _untied(config: DecoderConfig) -> DecoderConfig:
    return DecoderConfig.from_json(config.to_json() | {"tied": False})


@pytest.mark.parametrize("name", ["gpt2", "lfm2"])
def test_a_copied_block_continues_a_text(name: str) -> None:
    """The copy of a block contains what was computed in it."""
    runner = TorchRunner(*random_decoder(name), kv_bytes=2**22)
    tokens = prompt(5, 12)
    first = placed(tokens, [4], GREEDY)
    expected = logits_of(runner, first)
    runner.copy_block(4, 9)
    assert torch.equal(logits_of(runner, placed(tokens, [9]), start=11), expected[11:])


def test_it_describes_its_cache() -> None:
    """Blocks of 16 positions that fill the memory given, and the step size given."""
    config, weights = random_decoder("llama")
    runner = TorchRunner(config, dict(weights), kv_bytes=10**6, max_tokens=77)
    assert runner.block_tokens == 16
    assert runner.block_bytes == 2 * 2 * 2 * 16 * 16 * 4  # layers, keys and values, heads, size, positions, bytes
    assert runner.blocks == 10**6 // runner.block_bytes
    assert runner.max_tokens == 77
    with pytest.raises(ValueError, match="no KV block"):
        TorchRunner(config, weights, kv_bytes=100)


def test_a_device_without_batch_invariant_products_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It serves all the same."""
    config, weights = random_decoder("gemma2")
    expected = logits_of(TorchRunner(config, dict(weights), kv_bytes=2**22), placed(prompt(1, 40), range(3)))
    assert not caplog.records
    monkeypatch.setattr(runner_module, "agreeing_widths", lambda *_: ())
    got = logits_of(TorchRunner(config, weights, kv_bytes=2**22), placed(prompt(1, 40), range(3)))
    assert torch.allclose(got, expected, atol=1e-4)
    assert "depends on the batch" in caplog.text


def test_closing_frees_the_weights() -> None:
    """Nothing of the model is kept, even by who keeps the runner."""
    import weakref

    config, weights = random_decoder("gpt2")
    runner = TorchRunner(config, weights, kv_bytes=2**20)
    embed = weakref.ref(weights["embed"])
    weights.clear()
    assert embed() is not None
    runner.close()
    assert embed() is None
