"""What the fast engine promises of its tokens, on real models: right, and the same in any company."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.engine.block_pool import BLOCK_TOKENS
from runtime.engine.engine import FastEngine
from runtime.host import resident_memory
from runtime.types import Grammar, Job, SamplingParams, Token
from tests.support.engines import Load, needs_kernels, without_kernels
from tests.support.expert_models import EXPERT_CASES
from tests.support.fakes import until
from tests.support.family_models import CASES, random_model
from tests.support.models import train_tokenizer
from tests.support.soak import SOAK, soak

ROOT = Path(__file__).resolve().parents[3]
WORDS = (ROOT / "loadtests/quality.txt").read_text().split()


_PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer"}},
    "required": ["name", "kind", "age"],
}
GRAMMARS = (
    Grammar("json_schema", json.dumps(_PERSON), "response_format"),
    Grammar("regex", "(the |a |and ){1,9}end", "guided_regex"),
)


def some_text(dice: random.Random, most: int) -> str:
    """A piece of prose."""
    start = dice.randrange(len(WORDS) - most)
    return " ".join(WORDS[start : start + dice.randint(1, most)])


async def answer(engine: Any, jobs: Sequence[Job]) -> list[list[Token]]:
    """Each sequence's tokens."""
    found: list[list[Token]] = [[] for job in jobs for _ in range(job.params.n)]
    async with aclosing(engine.stream(jobs)) as stream:
        async for token in stream:
            found[token.sequence].append(replace(token, cached_tokens=0))
    return found


# The same in any company


async def mixed_jobs(engine: Any, dice: random.Random, count: int, most_words: int) -> list[Job]:
    """Requests of every kind; some begin alike."""
    beginnings = [some_text(dice, most_words) for _ in range(4)]
    jobs = []
    for _ in range(count):
        text = dice.choice(["", "", *beginnings]) + " " + some_text(dice, most_words)
        prompt = await engine.encode(text)
        params = SamplingParams(
            max_new_tokens=dice.choice([1, 5, 24, 24]),
            temperature=dice.choice([0.0, 0.7, 1.0, 1.5]),
            top_k=dice.choice([0, 1, 50]),
            top_p=dice.choice([1.0, 0.9, 0.3]),
            min_p=dice.choice([0.0, 0.0, 0.1]),
            repetition_penalty=dice.choice([1.0, 1.0, 1.2]),
            presence_penalty=dice.choice([0.0, 0.0, 0.5]),
            frequency_penalty=dice.choice([0.0, 0.0, 0.5]),
            logit_bias=dice.choice([(), (), ((17, 5.0), (30, -100.0))]),
            min_new_tokens=dice.choice([0, 0, 1]),
            logprobs=dice.choice([None, 0, 3]),
            stop=dice.choice([(), (), (" the", "\n")]),
            stop_token_ids=dice.choice([(), (), tuple(range(20, 40))]),
            ignore_eos=dice.choice([False, False, True]),
            seed=dice.randrange(2**63),
            n=dice.choice([1, 1, 1, 3]),
            grammar=dice.choice([None, None, *GRAMMARS]),
        )
        if params.grammar is None:
            params = replace(
                params,
                allowed_token_ids=dice.choice([(), (), tuple(range(10, 300))]),
                bad_words=dice.choice([(), (), ("the", "and a")]),
                include_stop=dice.choice([False, True]),
                skip_special_tokens=dice.choice([False, True]),
            )
        jobs.append(Job(prompt, params))
    return jobs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        pytest.param("embedded", {"dtype": "int8"}, marks=needs_kernels, id="embedded-int8"),
        pytest.param("mixed", {"dtype": "gguf"}, marks=needs_kernels, id="mixed-gguf"),
        pytest.param("llama", {"dtype": "int4"}, marks=needs_kernels, id="llama-int4"),
        pytest.param("llama", {"dtype": "bfloat16"}, marks=needs_kernels, id="llama-bfloat16"),
        pytest.param("llama", {"dtype": "float32", "kv_dtype": "int8"}, marks=needs_kernels, id="llama-int8-kv"),
        pytest.param("gpt2", {"dtype": "float32"}, marks=needs_kernels, id="gpt2-float32"),
        pytest.param("llama", {"dtype": "float32", "kernels": False}, id="llama-torch"),
        pytest.param("gpt2", {"dtype": "float32", "kernels": False}, id="gpt2-torch"),
    ],
)
async def test_mixed_requests_are_the_same_alone_and_among_16(
    model: str,
    settings: dict[str, Any],
    tiny_gpt2: Path,
    tiny_llama: Path,
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Tokens, texts and log-probabilities are identical to the last bit alone, and sixteen at a time in another order,
    with prompts computed in chunks, prefix hits and guessed tokens.
    """
    name: str | Path = {"embedded": "smollm2-135m-instruct", "gpt2": tiny_gpt2}.get(model, tiny_llama)
    if model == "mixed":
        name = request.getfixturevalue("mixed_gguf")
    settings = dict(settings)
    if not settings.pop("kernels", True):
        without_kernels(monkeypatch)
    alone_engine = load(name, **settings, speculate_tokens=0, prefix_cache_bytes=0, max_step_tokens=1024)
    engine: FastEngine = load(
        name, **settings, token_budget=40, max_step_tokens=64, max_batch=16, kv_cache_bytes=64 << 20
    )
    dice = random.Random(20)
    count = soak(200, 16 if model == "embedded" else 40)
    jobs = await mixed_jobs(engine, dice, count, 80 if model == "embedded" else 20)
    jobs = [job for job in jobs if len(job.token_ids) + 24 <= engine.info.context_length]
    assert len(jobs) > 0.75 * count
    alone = [await answer(alone_engine, [job]) for job in jobs]
    gate = asyncio.Semaphore(16)

    async def among_others(index: int) -> list[list[Token]]:
        async with gate:
            await asyncio.sleep(dice.random() * 0.01)
            return await answer(engine, [jobs[index]])

    order = dice.sample(range(len(jobs)), len(jobs))
    crowd = dict(zip(order, await asyncio.gather(*(among_others(index) for index in order)), strict=True))
    different = [index for index in order if crowd[index] != alone[index]]
    assert not different


FAMILY_CASES = {**CASES, **EXPERT_CASES}
_ONE_OF_EACH = {family: case for case, (family, _) in reversed(FAMILY_CASES.items())}.values()
PROVEN = list(FAMILY_CASES if SOAK else [*_ONE_OF_EACH, "phi3 with other rotations in long texts"])


@torch.inference_mode()
def next_logprobs(model: Any, text: list[int], prompt: int, *, by_length: bool) -> torch.Tensor:
    """Return transformers' log-probabilities of each token behind a prompt.

    Args:
        model: the model.
        text: prompt and generated tokens.
        prompt: length of the prompt.
        by_length: whether a text's length changes the logits of its earlier tokens, so that each prefix is computed.
    """
    if by_length:
        rows = [model(torch.tensor([text[:end]])).logits[0, -1] for end in range(prompt, len(text))]
        return torch.stack(rows).log_softmax(-1)
    return model(torch.tensor([text])).logits[0, prompt - 1 : -1].log_softmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernels", [pytest.param(True, marks=needs_kernels, id="native"), pytest.param(False, id="torch")]
)
@pytest.mark.parametrize("case", PROVEN)
async def test_every_family_is_the_same_alone_and_among_others(
    case: str, kernels: bool, tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fast engine serves the family, greedily with transformers' tokens; and alone, or beside other requests with
    preemption, chunks, prefix hits and drafts, tokens and log-probabilities are identical to the last bit.
    """
    if not kernels:
        without_kernels(monkeypatch)
    family, options = FAMILY_CASES[case]
    folder = tmp_path / "model"
    model = random_model(family, options | {"vocab_size": 600})
    model.save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    settings: dict[str, Any] = {"dtype": "float32", "engine": "fast", "num_threads": 1}
    alone_engine = load(folder, **settings, speculate_tokens=0, prefix_cache_bytes=0)
    blocks = alone_engine.info.context_length // BLOCK_TOKENS + 2  # hardly more than one long text
    engine = load(
        folder,
        **settings,
        token_budget=20,
        max_step_tokens=32,
        max_batch=4,
        prefix_cache_bytes=1 << 20,
        kv_cache_bytes=blocks * alone_engine._runner.block_bytes,
    )
    assert engine.info.engine == ("native" if kernels else "torch")
    dice = random.Random(22)
    limit = engine.info.context_length - 12
    jobs = []
    for number in range(soak(40, 8)):
        prompt = tuple(dice.choices(range(3, 500), k=dice.randint(1, limit)))
        if number % 2 and len(jobs[-1].token_ids) > 16:
            prompt = jobs[-1].token_ids[:16] + prompt[: limit - 16]
        params = SamplingParams(max_new_tokens=12, temperature=dice.choice([0.0, 0.9]), seed=number, logprobs=2)
        jobs.append(Job(prompt, params, background=number % 4 == 3))
    alone = [await answer(alone_engine, [job]) for job in jobs]
    assert await asyncio.gather(*(answer(engine, [job]) for job in jobs)) == alone
    for job, (tokens,) in zip(jobs, alone, strict=True):
        if job.params.temperature == 0:
            text = [*job.token_ids, *(token.id for token in tokens)]
            expected = next_logprobs(model, text, len(job.token_ids), by_length="long texts" in case)
            chosen = expected[range(len(tokens)), [token.id for token in tokens]]
            assert [token.logprob for token in tokens] == pytest.approx(chosen.tolist(), abs=2e-3)
            assert torch.all(expected.max(-1).values - chosen < 1e-4)  # but for ties it is the most likely


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        pytest.param("embedded", {"dtype": "int8"}, marks=needs_kernels, id="embedded-int8"),
        pytest.param("llama", {"dtype": "bfloat16"}, marks=needs_kernels, id="llama-bfloat16"),
        pytest.param("gpt2", {"dtype": "float32"}, marks=needs_kernels, id="gpt2-float32"),
        pytest.param("llama", {"dtype": "float32", "kernels": False}, id="llama-torch"),
    ],
)
async def test_requests_that_are_interrupted_are_the_same_as_alone(
    model: str, settings: dict[str, Any], tiny_gpt2: Path, tiny_llama: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Background requests that are preempted many times, and the interactive requests that preempt them, get the same
    tokens, texts and log-probabilities as alone, to the last bit.
    """
    name = {"embedded": "smollm2-135m-instruct", "gpt2": tiny_gpt2, "llama": tiny_llama}[model]
    settings = dict(settings)
    if not settings.pop("kernels", True):
        without_kernels(monkeypatch)
    alone_engine = load(name, **settings, speculate_tokens=0, prefix_cache_bytes=0, max_step_tokens=1024)
    engine: FastEngine = load(
        name, **settings, token_budget=40, max_step_tokens=64, max_batch=4, prefix_cache_bytes=100_000
    )
    dice = random.Random(21)
    small = model != "embedded"
    jobs = await mixed_jobs(engine, dice, soak(60, 12 if small else 6), 20 if small else 80)
    jobs = [job for job in jobs if len(job.token_ids) + 24 <= engine.info.context_length]
    alone = [await answer(alone_engine, [job]) for job in jobs]
    order = itertools.cycle(dice.sample(range(len(jobs)), len(jobs)))
    found: list[tuple[int, list[list[Token]]]] = []
    enough = False

    async def in_background() -> None:
        while not enough or len(found) < 2 * len(jobs):
            index = next(order)
            found.append((index, await answer(engine, [replace(jobs[index], background=True)])))

    tasks = [asyncio.create_task(in_background()) for _ in range(8)]
    interactive = itertools.cycle(range(0, len(jobs), 2))
    asked = 0
    while asked < len(jobs) // 2 or engine._scheduler.preemptions < len(jobs):
        # Each when the others have taken all rows. It preempts one of them, unless one ends in the same step.
        await until(lambda: engine._scheduler.running == 4, seconds=60)
        index = next(interactive)
        found.append((index, await answer(engine, [jobs[index]])))
        asked += 1
        assert asked < 20 * len(jobs), "almost none is preempted"
    enough = True
    await asyncio.gather(*tasks)
    assert {index for index, _ in found} == set(range(len(jobs)))
    assert not [index for index, crowd in found if crowd != alone[index]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        pytest.param("embedded", {"dtype": "int8"}, marks=needs_kernels, id="embedded-int8"),
        pytest.param("llama", {"dtype": "bfloat16"}, marks=needs_kernels, id="llama-bfloat16"),
        pytest.param("gpt2", {"dtype": "float32"}, marks=needs_kernels, id="gpt2-float32"),
        pytest.param("llama", {"dtype": "float32", "kernels": False}, id="llama-torch"),
    ],
)
async def test_requests_in_a_small_kv_cache_are_the_same_as_alone(
    model: str, settings: dict[str, Any], tiny_gpt2: Path, tiny_llama: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that lose their blocks to others, again and again, get the same tokens, texts and log-probabilities as
    alone, to the last bit.
    """
    name = {"embedded": "smollm2-135m-instruct", "gpt2": tiny_gpt2, "llama": tiny_llama}[model]
    settings = dict(settings)
    if not settings.pop("kernels", True):
        without_kernels(monkeypatch)
    alone_engine = load(name, **settings, speculate_tokens=0, prefix_cache_bytes=0, max_step_tokens=1024)
    blocks = 18 if model == "embedded" else 12
    engine: FastEngine = load(
        name,
        **settings,
        token_budget=40,
        max_step_tokens=64,
        max_batch=12,
        kv_cache_bytes=blocks * alone_engine._runner.block_bytes,
    )
    assert engine._runner.blocks == blocks
    dice = random.Random(23)
    jobs = await mixed_jobs(engine, dice, soak(60, 8 if model == "embedded" else 16), 40 if model == "embedded" else 10)
    long = {"max_new_tokens": 48, "ignore_eos": True, "stop": (), "stop_token_ids": ()}
    jobs = [replace(job, params=replace(job.params, **long)) for job in jobs]
    jobs = [job for job in jobs if len(job.token_ids) + 48 <= min(engine.info.context_length, engine.info.kv_tokens)]
    assert len(jobs) > 5
    alone = [await answer(alone_engine, [job]) for job in jobs]
    assert await asyncio.gather(*(answer(engine, [job]) for job in jobs)) == alone
    assert engine._scheduler.preemptions >= len(jobs) // 8
    assert engine._scheduler._pool.used == 0


# Right


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("model", ["embedded", "gpt2", "llama"])
async def test_greedy_texts_are_those_of_transformers(
    model: str, tiny_gpt2: Path, tiny_llama: Path, load: Load
) -> None:
    """In float32 the fast engine and transformers' generate write the same tokens, and give them like probabilities."""
    name = {"embedded": "smollm2-135m-instruct", "gpt2": tiny_gpt2, "llama": tiny_llama}[model]
    fast = load(name, dtype="float32", prefix_cache_bytes=0)
    reference = load(name, dtype="float32", engine="reference")
    dice = random.Random(7)
    params = SamplingParams(max_new_tokens=16, temperature=0, logprobs=2)
    prompts = [(await fast.encode(some_text(dice, 15)))[:100] for _ in range(soak(100, 6))]
    jobs = [Job(prompt, params) for prompt in prompts]
    wanted = [tokens for i in range(0, len(jobs), 20) for tokens in await answer(reference, jobs[i : i + 20])]
    found = [tokens for i in range(0, len(jobs), 20) for tokens in await answer(fast, jobs[i : i + 20])]
    assert [[t.id for t in tokens] for tokens in found] == [[t.id for t in tokens] for tokens in wanted]
    for mine, theirs in zip(found, wanted, strict=True):
        assert [t.logprob for t in mine] == pytest.approx([t.logprob for t in theirs], abs=2e-3)


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize(("dtype", "tie"), [("bfloat16", 0.1), ("int8", 1.5)])
async def test_where_rounding_first_changes_a_text_two_tokens_were_nearly_even(
    dtype: str, tie: float, load: Load
) -> None:
    """With rounded weights a greedy text leaves the exact one only where the exact logits of both tokens are close."""
    exact = load("smollm2-135m-instruct", dtype="float32", prefix_cache_bytes=0)
    rounded = load("smollm2-135m-instruct", dtype=dtype)
    reference = load("smollm2-135m-instruct", dtype="float32", engine="reference")
    model = reference._generator._model
    dice = random.Random(8)
    params = SamplingParams(max_new_tokens=16, temperature=0)
    jobs = [Job((await exact.encode(some_text(dice, 15)))[:100], params) for _ in range(soak(100, 20))]
    parts = [jobs[i : i + 20] for i in range(0, len(jobs), 20)]
    wanted = [[t.id for t in tokens] for part in parts for tokens in await answer(exact, part)]
    found = [[t.id for t in tokens] for part in parts for tokens in await answer(rounded, part)]
    gaps = []
    for job, theirs, mine in zip(jobs, wanted, found, strict=True):
        at = next((i for i, (a, b) in enumerate(zip(theirs, mine, strict=False)) if a != b), None)
        if at is not None:
            with torch.inference_mode():
                logits = model(torch.tensor([[*job.token_ids, *theirs[:at]]])).logits[0, -1]
            gaps.append(float(logits[theirs[at]] - logits[mine[at]]))
    assert gaps  # else rounding would change nothing, and this test show nothing
    assert max(gaps, default=0) < tie


# Gone without a trace


@pytest.mark.slow
@needs_kernels
async def test_1000_clients_that_leave_leave_nothing_behind(tiny_llama: Path, load: Load) -> None:
    """Whenever they go, queued, prefilling or decoding: rows, blocks, tasks, files and memory are as before."""
    engine: FastEngine = load(tiny_llama, dtype="float32", max_batch=8, max_step_tokens=32, token_budget=16)
    dice = random.Random(4)

    async def leave(stream: bool) -> None:
        prompt = tuple(dice.choices(range(3, 600), k=dice.randint(1, 150)))
        job = Job(prompt, SamplingParams(max_new_tokens=100, temperature=1.0, seed=1, n=dice.choice([1, 1, 2])))
        task = asyncio.create_task(answer(engine, [job]))
        if stream:  # goes after some tokens
            async with aclosing(engine.stream([job])) as tokens:
                left = dice.randint(1, 40)
                async for _ in tokens:
                    left -= 1
                    if not left:
                        break
        else:
            await asyncio.sleep(dice.random() * 0.05)
        task.cancel()
        await asyncio.wait([task])

    async def crowd(count: int) -> None:
        for _ in range(count // 50):
            await asyncio.gather(*(leave(dice.random() < 0.5) for _ in range(50)))

    def state() -> tuple[int, int, int, int]:
        return (
            engine._scheduler.running + engine._scheduler.waiting,
            engine._scheduler._pool.used,
            len(asyncio.all_tasks()),
            len(os.listdir("/proc/self/fd")),
        )

    await crowd(200)  # fills the prefix cache, and whatever grows once
    await until(lambda: state()[:2] == (0, 0))
    before, memory = state(), resident_memory()
    await crowd(1000)
    await until(lambda: state() == before)
    assert resident_memory() - memory < 8 << 20
