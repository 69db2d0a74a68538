"""The compiled kernels against transformers, against themselves in other company, and against
``runtime.engine.pytorch.sampling``.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from runtime.engine.native import library
from runtime.engine.native.runner import NativeRunner
from runtime.engine.pytorch.sampling import Draw, adjust, log_probabilities, sample
from runtime.engine.rng import uniform
from runtime.engine.sequence import Row, Sampled, Sequence, StepInterrupted
from runtime.errors import InternalError
from runtime.loading import snapshot_writer
from runtime.loading.serving_form import serving_form
from runtime.model.catalogue import parse_model_name
from runtime.model.config import KVDType
from runtime.model.packing import pack, unpack
from runtime.types import SamplingParams
from tests.support.engines import needs_kernels, snapshot_of
from tests.support.models import save_tiny_llama, with_tensors

pytestmark = needs_kernels
Open = Callable[..., NativeRunner]
LEVELS = {kernels.level: kernels for kernels in library.usable()}


@pytest.fixture(params=["gpt2", "llama", "untied llama"])
def folder(request: pytest.FixtureRequest, tiny_gpt2: Path, tiny_llama: Path, untied_llama: Path) -> Path:
    """Each family."""
    found: Path = {"gpt2": tiny_gpt2, "llama": tiny_llama, "untied llama": untied_llama}[request.param]
    return found


@pytest.fixture(scope="session")
def untied_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with biases, a head of its own, Llama 3.1's rotary scaling and widths that are no power of two."""
    return save_tiny_llama(
        tmp_path_factory.mktemp("models") / "untied",
        tie_word_embeddings=False,
        attention_bias=True,
        mlp_bias=True,
        hidden_size=144,
        intermediate_size=208,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=48,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )


@pytest.fixture
def runner() -> Iterator[Open]:
    """Opens runners and closes them."""
    opened: list[NativeRunner] = []

    def make(folder: Path, kind: str = "float32", **options: Any) -> NativeRunner:
        chosen = {"kv_bytes": 4 << 20, "max_tokens": 256, "threads": 2} | options
        opened.append(NativeRunner(snapshot_of(folder, kind), **chosen))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def sequence(ids: list[int], blocks: range | list[int], seed: int = 1, **params: Any) -> Sequence:
    """A sequence that holds its KV blocks."""
    made = Sequence(tuple(ids), SamplingParams(**{"max_new_tokens": 64, "temperature": 0.0} | params), seed)
    made.blocks = list(blocks)
    return made


def whole(ids: list[int], blocks: range | list[int]) -> Row:
    """A row that asks for the logits behind each token."""
    return Row(sequence(ids, blocks), 0, ids, samples=len(ids))


def some_ids(count: int, seed: int = 0) -> list[int]:
    """Token ids of the tiny vocabulary."""
    return random.Random(seed).choices(range(600), k=count)


@pytest.mark.parametrize("level", LEVELS)
def test_logits_are_those_of_transformers(folder: Path, level: str, runner: Open) -> None:
    """In float32 the kernels of every instruction set compute what transformers computes."""
    ids = some_ids(100)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    found = runner(folder, kernels=LEVELS[level]).logits([whole(ids, range(7))])
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def rounded(model: Any, kind: Any) -> None:
    """Make transformers compute with weights, and for int8 with activations, rounded as the kernels round them."""

    def activations(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        parts = inputs[0].split(64, dim=-1)
        scales = [part.abs().amax(-1, keepdim=True) / 127 for part in parts]
        return (torch.cat([(part / scale).round() * scale for part, scale in zip(parts, scales, strict=True)], -1),)

    for module in model.modules():
        name = type(module).__name__
        if name in ("Linear", "Conv1D", "Embedding") and module is not getattr(model.base_model, "wpe", None):
            weight = module.weight.data.T if name == "Conv1D" else module.weight.data
            values = torch.from_numpy(unpack(pack(weight.numpy(), kind), *weight.shape, kind))
            module.weight = torch.nn.Parameter(values.T if name == "Conv1D" else values)
            if kind == "int8" and name != "Embedding":
                module.register_forward_pre_hook(activations)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_rounding_is_all_that_smaller_weights_change(folder: Path, kind: str, level: str, runner: Open) -> None:
    """Logits are those of transformers with the same rounding, but for what half-precision keys and values add."""
    ids = some_ids(60)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rounded(model, kind)
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    found = runner(folder, kind, kernels=LEVELS[level]).logits([whole(ids, range(4))])
    assert np.sqrt(np.mean((found - wanted) ** 2)) < (0.02 if kind == "bfloat16" else 0.05) * wanted.std()


@pytest.mark.parametrize("level", LEVELS)
def test_keys_and_values_of_8_bits_change_little(folder: Path, level: str, runner: Open) -> None:
    """Logits are those of float32 keys and values but for a few hundredths of their spread."""
    ids = some_ids(100)
    wanted = runner(folder, kernels=LEVELS[level]).logits([whole(ids, range(7))])
    found = runner(folder, kernels=LEVELS[level], kv_dtype="int8").logits([whole(ids, range(7))])
    assert 0 < np.sqrt(np.mean((found - wanted) ** 2)) < 0.08 * wanted.std()


def test_a_block_takes_what_its_type_needs(tiny_llama: Path, runner: Open) -> None:
    """In 8 bits a block is little more than half as large as in 16, and one byte less than a block is refused."""
    half, small = runner(tiny_llama, kv_dtype="float16"), runner(tiny_llama, kv_dtype="int8")
    assert 0.5 < small.block_bytes / half.block_bytes < 0.7
    assert runner(tiny_llama, kv_dtype="int8", kv_bytes=small.block_bytes).blocks == 1
    with pytest.raises(MemoryError, match=f"a block takes {small.block_bytes}"):
        runner(tiny_llama, kv_dtype="int8", kv_bytes=small.block_bytes - 1)


@pytest.mark.parametrize(
    ("kind", "kv_dtype"), [("float32", None), ("bfloat16", None), ("int8", None), ("float32", "int8")]
)
@pytest.mark.parametrize("level", LEVELS)
def test_a_row_never_depends_on_others(folder: Path, kind: str, kv_dtype: str | None, level: str, runner: Open) -> None:
    """Logits are the same to the last bit alone and among others, in any blocks, whatever the chunks and threads."""
    ids = some_ids(90)
    options = {"kernels": LEVELS[level], "kv_dtype": kv_dtype}
    alone = runner(folder, kind, **options, threads=1).logits([whole(ids, range(6))])
    crowd = runner(folder, kind, **options, threads=3)
    dice = random.Random(5)
    for attempt in range(12):
        blocks = dice.sample(range(40), 6)
        mine, at, found = sequence(ids, blocks), 0, []
        while at < len(ids):
            count = min(dice.choice([1, 2, 3, 7, 16, 33]), len(ids) - at)
            # The others write into blocks of their own, which this sequence may have had in another attempt.
            others = [
                whole(some_ids(dice.randint(1, 40), seed=attempt * 100 + i), [b, b + 1, b + 2])
                for i, b in enumerate(range(40, 40 + 3 * dice.randint(0, 4), 3))
            ]
            place = dice.randint(0, len(others))
            rows = [*others[:place], Row(mine, at, ids[at : at + count], samples=count), *others[place:]]
            before = sum(row.samples for row in rows[:place])
            found.append(crowd.logits(rows)[before : before + count])
            at += count
        assert np.array_equal(np.concatenate(found), alone)


def params_of(dice: random.Random) -> SamplingParams:
    """Any parameters."""
    return SamplingParams(
        max_new_tokens=64,
        temperature=dice.choice([0.0, 0.3, 0.7, 1.0, 2.0]),
        top_k=dice.choice([0, 0, 1, 5, 50, 599, 10_000]),
        top_p=dice.choice([1.0, 0.95, 0.5, 0.01]),
        min_p=dice.choice([0.0, 0.0, 0.05, 0.5, 1.0]),
        repetition_penalty=dice.choice([1.0, 1.0, 1.3, 0.8]),
        presence_penalty=dice.choice([0.0, 0.0, 1.5, -1.0]),
        frequency_penalty=dice.choice([0.0, 0.0, 0.7]),
        logit_bias=tuple((dice.randrange(600), dice.uniform(-100, 100)) for _ in range(dice.choice([0, 0, 3]))),
        logprobs=dice.choice([None, 0, 3, 20]),
    )


def some_mask(dice: random.Random, vocabulary: int) -> NDArray[np.int32] | None:
    """A grammar's mask of one row, or none: of a few ids, of nearly all, or of any."""
    share = dice.choice([None, None, 0.0, 0.01, 0.5, 0.999])
    if share is None:
        return None
    words = -(-vocabulary // 32)
    bits = np.array([dice.random() < share for _ in range(32 * words)])
    bits[dice.randrange(vocabulary)] = True
    return np.packbits(bits, bitorder="little").view(np.int32)[None]


@pytest.mark.parametrize("level", LEVELS)
def test_choices_are_those_of_the_sampling_functions(tiny_llama: Path, level: str, runner: Open) -> None:
    """For any parameters, the token and its log-probabilities are what ``runtime.engine.pytorch.sampling`` gives for
    the logits.
    """
    kernels = runner(tiny_llama, kernels=LEVELS[level])
    dice = random.Random(3)
    for attempt in range(300):
        made = sequence(some_ids(8, seed=attempt), [0, 1])
        made.params, made.seed, made.number = params_of(dice), dice.randrange(2**64), dice.randrange(4)
        made.tokens += (new := some_ids(dice.randint(0, 6), seed=-attempt))
        made.counts = Counter(new)
        row = Row(made, 0, list(made.tokens), banned=tuple(some_ids(dice.choice([0, 2]), seed=attempt)))
        row.masks = some_mask(dice, 600)
        logits = torch.from_numpy(kernels.logits([row])[0])
        found = kernels.step([row])[0]
        assert isinstance(found, list)
        u = uniform(made.seed, made.number, made.generated)
        counts = made.counts if made.params.presence_penalty or made.params.frequency_penalty else None
        draw = Draw(made.params, u, made.tokens, counts, row.banned, made.params.logit_bias, row.mask(0))
        wanted = sample(adjust(logits, draw), made.params, u)
        assert found[0].id == wanted
        if made.params.logprobs is None:
            assert found[0] == Sampled(wanted)
        else:
            logprob, top = log_probabilities(logits, wanted, made.params.logprobs)
            assert found[0].logprob == pytest.approx(logprob, abs=1e-4)
            assert [i for i, _ in found[0].top] == [i for i, _ in top]
            assert [p for _, p in found[0].top] == pytest.approx([p for _, p in top], abs=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_top_p_ends_with_the_token_that_reaches_it(tiny_llama: Path, tmp_path: Path, level: str, runner: Open) -> None:
    """Of eight equally likely tokens exactly four have half of the probability; no fifth one is ever chosen."""
    flat = with_tensors(
        tiny_llama, tmp_path / "flat", lambda tensors: tensors | {"model.norm.weight": tensors["model.norm.weight"] * 0}
    )
    kernels = runner(flat, kernels=LEVELS[level])
    chosen = Counter[int]()
    for seed in range(100):
        made = sequence(some_ids(8), [0, 1], seed=seed, temperature=1.0, top_k=8, top_p=0.5)
        found = kernels.step([Row(made, 0, list(made.tokens))])[0]
        assert isinstance(found, list)
        chosen[found[0].id] += 1
    assert sorted(chosen) == [0, 1, 2, 3]


def test_drafts_are_judged_by_the_numbers_of_their_positions(tiny_llama: Path, runner: Open) -> None:
    """The choices behind right drafts are those of one step after the other."""
    kernels = runner(tiny_llama)
    slow = sequence(some_ids(20), range(3), seed=9, temperature=1.0, top_k=0)
    fed = slow.tokens[:]
    at = 0
    while slow.generated < 6:
        row = Row(slow, at, fed)
        at += len(fed)
        found = kernels.step([row])[0]
        assert isinstance(found, list)
        fed = [found[0].id]
        slow.tokens += fed
    wanted = slow.tokens[20:]
    fast = sequence(some_ids(20), range(10, 13), seed=9, temperature=1.0, top_k=0)
    kernels.step([Row(fast, 0, fast.tokens[:-1], samples=0)])
    found = kernels.step([Row(fast, 19, [fast.tokens[-1], *wanted[:5]], drafts=5, samples=6)])[0]
    assert isinstance(found, list)
    assert [one.id for one in found] == wanted


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_interrupted(tiny_llama: Path, runner: Open, kv_dtype: KVDType) -> None:
    """A step that is interrupted raises. It goes on with the same result, whatever else ran meanwhile, or its rows are
    run again.
    """
    kernels = runner(tiny_llama, kv_dtype=kv_dtype)
    texts = [some_ids(8, seed=seed) for seed in range(2)]
    rows = [Row(sequence(text, [number]), 0, text) for number, text in enumerate(texts)]
    other = [Row(sequence(some_ids(20, seed=3), range(2, 4)), 0, some_ids(20, seed=3))]
    wanted, others = kernels.step(rows, ctypes.c_int32(0)), kernels.step(other)
    with pytest.raises(StepInterrupted):
        kernels.step(rows, ctypes.c_int32(1))
    assert kernels.step(other) == others
    with pytest.raises(StepInterrupted):
        kernels.step(rows, ctypes.c_int32(1), resume=True)
    assert kernels.step(other) == others
    assert kernels.step(rows, ctypes.c_int32(0), resume=True) == wanted
    with pytest.raises(StepInterrupted):
        kernels.step([rows[1], rows[0]], ctypes.c_int32(1))
    assert kernels.step(rows) == wanted


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_interrupted_between_any_layers(tiny_llama: Path, runner: Open, kv_dtype: KVDType) -> None:
    """A step has the same result wherever it is interrupted."""
    kernels = runner(tiny_llama, kv_dtype=kv_dtype)
    rows = [Row(sequence(some_ids(8, seed=seed), [seed]), 0, some_ids(8, seed=seed)) for seed in range(2)]
    other = [Row(sequence(some_ids(20, seed=3), range(2, 4)), 0, some_ids(20, seed=3))]
    wanted, others = kernels.step(rows), kernels.step(other)
    flag, ending = ctypes.c_int32(), threading.Event()

    def flip() -> None:
        while not ending.is_set():
            flag.value = 1 - flag.value

    thread = threading.Thread(target=flip)
    thread.start()
    interruptions = 0
    try:
        while interruptions < 100:
            resume = False
            while True:
                try:
                    assert kernels.step(rows, flag, resume=resume) == wanted
                    break
                except StepInterrupted:
                    interruptions += 1
                    resume = True
                    assert kernels.step(other) == others
    finally:
        ending.set()
        thread.join()


def test_only_an_interrupted_step_goes_on(tiny_llama: Path, runner: Open) -> None:
    """Going on is refused where no step was interrupted, where it went on already, and for another number of tokens."""
    kernels = runner(tiny_llama)
    row = Row(sequence(some_ids(8), [0]), 0, some_ids(8))
    with pytest.raises(RuntimeError, match="the rows"):
        kernels.step([row], resume=True)
    with pytest.raises(StepInterrupted):
        kernels.step([row], ctypes.c_int32(1))
    with pytest.raises(RuntimeError, match="the rows"):
        kernels.step([Row(row.sequence, 0, row.token_ids[:7], samples=0)], resume=True)
    kernels.step([row], resume=True)
    with pytest.raises(RuntimeError, match="the rows"):
        kernels.step([row], resume=True)


def test_a_row_whose_logits_are_not_numbers_fails_alone(untied_llama: Path, runner: Open) -> None:
    """Its neighbours, and who gets its blocks afterwards, are as without it."""
    facts, tokenizer, weights = serving_form(
        parse_model_name(str(untied_llama)), untied_llama, "float32", lambda stage, share: None
    )

    def poisoned(read: Any) -> Any:
        values = read().copy()
        values[13] = np.nan
        return values

    weights = [
        replace(weight, read=lambda read=weight.read: poisoned(read), read_rows=None)
        if weight.name == "embed"
        else weight
        for weight in weights
    ]
    kernels = NativeRunner(snapshot_writer.hold(facts, tokenizer, weights), kv_bytes=4 << 20, max_tokens=256, threads=2)
    good = [i for i in some_ids(30) if i != 13]
    alone = kernels.logits([whole(good, range(2))])
    rows = [Row(sequence(good, [2, 3]), 0, good), Row(sequence([13] * 32, [4, 5]), 0, [13] * 32)]
    results = kernels.step(rows)
    assert isinstance(results[0], list)
    assert isinstance(results[1], InternalError)
    assert np.array_equal(kernels.logits([whole(good, [4, 5])]), alone)
    kernels.close()


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_a_copied_block_holds_the_same(folder: Path, kv_dtype: str | None, runner: Open) -> None:
    """A sequence that goes on from copies of another's blocks sees the same past."""
    ids = some_ids(40)
    kernels = runner(folder, kv_dtype=kv_dtype)
    wanted = kernels.logits([whole(ids, range(3))])[-1]
    for block in range(3):
        kernels.copy_block(block, 10 + block)
    found = kernels.logits([Row(sequence(ids, range(10, 13)), 39, ids[39:])])
    assert np.array_equal(found[0], wanted)


def test_no_room_for_a_block_is_said(tiny_llama: Path, runner: Open) -> None:
    """A budget smaller than one block is refused."""
    with pytest.raises(MemoryError):
        runner(tiny_llama, kv_bytes=1000)
