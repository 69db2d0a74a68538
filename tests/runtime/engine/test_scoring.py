"""A given text's log-probabilities (``SamplingParams.forced``): transformers' own, and the same in any company."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from runtime.types import Job, SamplingParams, Token
from tests.support.engines import Load, needs_kernels, without_kernels

EMBEDDED = "smollm2-135m-instruct"


async def answer(engine: Any, jobs: Sequence[Job]) -> list[list[Token]]:
    """Each job's tokens."""
    found: list[list[Token]] = [[] for _ in jobs]
    async with aclosing(engine.stream(jobs)) as stream:
        async for token in stream:
            found[token.sequence].append(token)
    return found


def scoring(prompt: Sequence[int], text: Sequence[int], **params: Any) -> Job:
    """Score a text behind a prompt."""
    chosen = {"max_new_tokens": len(text), "temperature": 0, "logprobs": 2, "forced": tuple(text)} | params
    return Job(tuple(prompt), SamplingParams(**chosen))


def texts(count: int, prompt: int, text: int) -> list[Job]:
    """Random ones, end tokens among their ids."""
    dice = random.Random(count)
    return [
        scoring(dice.choices(range(600), k=dice.randint(1, prompt)), dice.choices(range(600), k=dice.randint(1, text)))
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        pytest.param("gpt2", {}, marks=needs_kernels, id="gpt2"),
        pytest.param("llama", {}, marks=needs_kernels, id="llama"),
        pytest.param("embedded", {}, marks=[needs_kernels, pytest.mark.slow], id="embedded"),
        pytest.param("gpt2", {"kernels": False}, id="gpt2-torch"),
        pytest.param("llama", {"kernels": False}, id="llama-torch"),
        pytest.param("gpt2", {"engine": "reference"}, id="gpt2-reference"),
        pytest.param("llama", {"engine": "reference"}, id="llama-reference"),
    ],
)
async def test_scores_are_those_of_transformers(
    model: str, settings: dict[str, Any], tiny_gpt2: Path, tiny_llama: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 each token of a text has the log-probability that one pass of transformers over it all gives it."""
    settings = dict(settings)
    if not settings.pop("kernels", True):
        without_kernels(monkeypatch)
    name = {"embedded": EMBEDDED, "gpt2": tiny_gpt2, "llama": tiny_llama}[model]
    engine = load(name, dtype="float32", **settings)
    oracle: Any
    if model == "embedded":
        oracle = load(name, dtype="float32", engine="reference")._generator._model
    else:
        oracle = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    jobs = texts(6, prompt=50, text=70)
    for job, tokens in zip(jobs, await answer(engine, jobs), strict=True):
        text = job.params.forced
        assert [token.id for token in tokens] == list(text)
        assert [token.finish_reason for token in tokens] == [None] * (len(text) - 1) + ["length"]
        with torch.inference_mode():
            logits = oracle(torch.tensor([[*job.token_ids, *text]])).logits[0, len(job.token_ids) - 1 : -1]
        wanted = torch.log_softmax(logits.float(), -1)
        own = wanted.gather(1, torch.tensor(text)[:, None])[:, 0].tolist()
        assert [token.logprob for token in tokens] == pytest.approx(own, abs=1e-3)
        best = wanted.max(-1).values.tolist()
        assert [token.top_logprobs[0][1] for token in tokens] == pytest.approx(best, abs=1e-3)


@needs_kernels
@pytest.mark.parametrize(
    ("model", "dtype"),
    [("gpt2", "float32"), ("llama", "bfloat16"), pytest.param("embedded", "int8", marks=pytest.mark.slow)],
)
async def test_scores_are_the_same_in_any_company(
    model: str, dtype: str, tiny_gpt2: Path, tiny_llama: Path, load: Load
) -> None:
    """To the last bit: alone, among others in small steps, one token at a time, and with the prompt in the cache."""
    name = {"embedded": EMBEDDED, "gpt2": tiny_gpt2, "llama": tiny_llama}[model]
    alone = load(name, dtype=dtype, prefix_cache_bytes=0)
    crowded = load(name, dtype=dtype, token_budget=24, max_step_tokens=32, max_batch=16, kv_cache_bytes=64 << 20)
    jobs = texts(8, prompt=40, text=40)
    wanted = [(await answer(alone, [job]))[0] for job in jobs]
    others = [
        Job(job.token_ids, SamplingParams(max_new_tokens=40, temperature=1, seed=1, min_new_tokens=40)) for job in jobs
    ]

    async def scores() -> list[list[tuple[int, float | None, Any]]]:
        found = await asyncio.gather(*(answer(crowded, [job]) for job in [*jobs, *others]))
        return [said(tokens) for (tokens,) in found[: len(jobs)]]

    def said(tokens: list[Token]) -> list[tuple[int, float | None, Any]]:
        return [(token.id, token.logprob, token.top_logprobs) for token in tokens]

    assert await scores() == [said(tokens) for tokens in wanted]
    assert await scores() == [said(tokens) for tokens in wanted], "from the prefix cache"
    job = jobs[0]
    for i, token in enumerate(wanted[0]):
        ((one,),) = await answer(alone, [scoring([*job.token_ids, *job.params.forced[:i]], [token.id])])
        assert (one.id, one.logprob) == (token.id, token.logprob)


@needs_kernels
async def test_what_was_generated_scores_as_it_was_generated(tiny_llama: Path, load: Load) -> None:
    """Generated tokens, scored, have the log-probabilities they came with, whatever shaped the choice."""
    engine = load(tiny_llama, dtype="bfloat16")
    shaped = SamplingParams(
        24, temperature=1.3, top_k=0, repetition_penalty=1.3, frequency_penalty=0.5, seed=3, logprobs=0
    )
    (made,) = await answer(engine, [Job(tuple(range(5, 25)), shaped)])
    ((*again,),) = await answer(engine, [scoring(range(5, 25), [token.id for token in made], logprobs=0)])
    assert [token.logprob for token in again] == [token.logprob for token in made]


@pytest.mark.parametrize("engine", ["fast", "reference"])
async def test_nothing_ends_or_shapes_a_forced_text(engine: str, tiny_llama: Path, load: Load) -> None:
    """End tokens, stop strings, sampling, biases and penalties leave forced tokens alone; what follows is free."""
    loaded = load(tiny_llama, dtype="float32", engine=engine)
    text = (2, 40, 41, 2, 40, 41, 0)
    (plain,) = await answer(loaded, [scoring((5, 6, 7), text)])
    stop = loaded._tokenizer.decode([40, 41])
    rules = {
        "temperature": 1.5,
        "seed": 2,
        "logit_bias": ((40, -100.0), (9, 100.0)),
        "repetition_penalty": 5.0,
        "presence_penalty": 2.0,
        "min_new_tokens": 3,
        "stop": (stop,),
    }
    (ruled,) = await answer(loaded, [scoring((5, 6, 7), text, **rules)])
    assert [(token.id, token.logprob) for token in ruled] == [(token.id, token.logprob) for token in plain]
    assert "".join(token.text for token in ruled) == stop * 2
    only = {"logit_bias": ((2, 100.0),)}  # the end token, once there is a choice
    (longer,) = await answer(loaded, [scoring((5, 6, 7), text, max_new_tokens=20, **only)])
    assert [token.id for token in longer] == [*text, 2]
    assert longer[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        pytest.param("gpt2", {}, marks=needs_kernels, id="gpt2"),
        pytest.param("llama", {"dtype": "bfloat16"}, marks=needs_kernels, id="llama"),
        pytest.param("embedded", {"dtype": "int8"}, marks=[needs_kernels, pytest.mark.slow], id="embedded"),
        pytest.param("llama", {"kernels": False}, id="llama-torch"),
        pytest.param("gpt2", {"engine": "reference"}, id="gpt2-reference"),
    ],
)
async def test_continuations_share_one_prompt(
    model: str, settings: dict[str, Any], tiny_gpt2: Path, tiny_llama: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of several texts behind one prompt has the log-probabilities that it has alone, to the last bit in the fast
    engine, which computes the prompt once, without a prefix cache: for each further text only its last token again.
    """
    settings = {"dtype": "float32", **settings, "prefix_cache_bytes": 0}
    if not settings.pop("kernels", True):
        without_kernels(monkeypatch)
    engine = load({"embedded": EMBEDDED, "gpt2": tiny_gpt2, "llama": tiny_llama}[model], **settings)
    dice = random.Random(5)
    for length, lengths in ((33, (1, 1, 1, 1)), (48, (1, 1, 1)), (40, (1, 4, 2, 9, 3))):
        prompt = dice.choices(range(600), k=length)
        found = [tuple(dice.choices(range(600), k=count)) for count in lengths]
        alone = [(await answer(engine, [scoring(prompt, text)]))[0] for text in found]
        params = SamplingParams(max(lengths), temperature=0, logprobs=2, n=len(found))
        rows: list[list[Token]] = [[] for _ in found]
        before = engine._metrics.step_tokens._sum.get()
        async with aclosing(engine.stream([Job(tuple(prompt), params, continuations=tuple(found))])) as stream:
            async for token in stream:
                rows[token.sequence].append(token)
        assert [tuple(token.id for token in row) for row in rows] == found
        own, wanted = ([token.logprob for row in several for token in row] for several in (rows, alone))
        if "engine" in settings:
            assert own == pytest.approx(wanted, abs=1e-4)
            continue
        assert own == wanted
        # Of each text all tokens but the last are fed to the model.
        computed = engine._metrics.step_tokens._sum.get() - before
        assert computed == length + sum(lengths) - len(lengths) + (len(lengths) - 1)
