"""The reference engine on real (tiny) models of both families, against transformers' own generation."""

from __future__ import annotations

import asyncio
import codecs
import io
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from runtime.engine import reference
from runtime.engine.pytorch import generator
from runtime.engine.reference import ReferenceEngine
from runtime.engine.rng import uniform
from runtime.errors import DeadlineExceeded, Draining, InternalError, InvalidRequest, TooManyRequests
from runtime.loading.loader import load
from runtime.model.catalogue import parse_model_name
from runtime.telemetry.logging import JsonFormatter
from runtime.telemetry.metrics import Metrics
from runtime.telemetry.request_scope import request_facts
from runtime.types import Job, SamplingParams, Token
from tests.support.engines import collect, ids
from tests.support.fakes import INFO, until

PROMPTS = (
    "Licensed under the Apache License",
    "You may",
    "the copyright owner or entity granting the License, and",
    "Work of art",
)
GREEDY = SamplingParams(max_new_tokens=12, temperature=0)


def build(name: Path | str, **limits: Any) -> ReferenceEngine:
    loaded = load(parse_model_name(str(name)), "cpu", "float32", lambda stage, fraction: None)
    limits.setdefault("metrics", Metrics().model("m"))
    engine = ReferenceEngine(loaded, replace(INFO, vocabulary_size=loaded.model.config.vocab_size), **limits)
    engine.warm_up()
    return engine


@pytest.fixture(scope="module")
def gpt2_engine(tiny_gpt2: Path) -> Iterator[ReferenceEngine]:
    """The tiny GPT-2 on this engine."""
    engine = build(tiny_gpt2)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def llama_engine(tiny_llama: Path) -> Iterator[ReferenceEngine]:
    """The tiny Llama on this engine."""
    engine = build(tiny_llama)
    yield engine
    engine.close()


async def run(engine: ReferenceEngine, jobs: Sequence[Job]) -> list[list[Token]]:
    return await collect(engine, *jobs)


async def jobs_for(engine: ReferenceEngine, texts: Sequence[str], params: SamplingParams) -> list[Job]:
    return [Job(await engine.encode(text), params) for text in texts]


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def folder(request: pytest.FixtureRequest) -> Path:
    """A model folder, once for each family."""
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def engine(folder: Path, request: pytest.FixtureRequest) -> ReferenceEngine:
    """The engine of that family."""
    found: ReferenceEngine = request.getfixturevalue("gpt2_engine" if "gpt2" in folder.name else "llama_engine")
    return found


async def test_greedy_is_what_transformers_generates(engine: ReferenceEngine, folder: Path) -> None:
    """Token for token the same as a plain call of transformers on one unpadded prompt."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for text in PROMPTS:
        given = tokenizer(text, return_tensors="pt")
        expected = model.generate(**given, do_sample=False, max_new_tokens=12, pad_token_id=0)[0]
        rows = await run(engine, await jobs_for(engine, [text], GREEDY))
        assert ids(rows)[0] == expected[given["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(max_new_tokens=12, seed=5, repetition_penalty=1.3)])
async def test_a_padded_batch_gives_what_each_prompt_gives_alone(
    engine: ReferenceEngine, params: SamplingParams
) -> None:
    """Prompts of different lengths in one batch do not see each other's padding (GPT-2 has no padding token)."""
    jobs = await jobs_for(engine, PROMPTS, params)
    together = ids(await run(engine, jobs))
    alone = [ids(await run(engine, [job]))[0] for job in jobs]
    assert len({len(job.token_ids) for job in jobs}) > 2
    assert together == alone


async def test_a_seed_repeats_and_sequences_of_one_prompt_differ(engine: ReferenceEngine) -> None:
    """The same seed gives the same sequences, each different from the other; another seed gives others."""

    async def sampled(seed: int | None) -> list[list[int]]:
        params = SamplingParams(max_new_tokens=10, temperature=1.5, top_k=0, top_p=1.0, seed=seed, n=3)
        return ids(await run(engine, await jobs_for(engine, ["You may"], params)))

    first = await sampled(1)
    assert await sampled(1) == first
    assert len({tuple(row) for row in first}) == 3
    assert await sampled(2) != first
    assert await sampled(None) != await sampled(None)


async def test_each_row_has_its_own_limit(engine: ReferenceEngine) -> None:
    """Rows of one batch end at their own max_new_tokens, with finish reason length on the last token only."""
    texts = await jobs_for(engine, PROMPTS[:2], GREEDY)
    short = Job(texts[0].token_ids, SamplingParams(max_new_tokens=2, temperature=0))
    rows = await run(engine, [short, texts[1]])
    assert [len(row) for row in rows] == [2, 12]
    assert [[token.finish_reason for token in row] for row in rows] == [[None, "length"], [None] * 11 + ["length"]]


async def test_a_stop_string_ends_one_row_only(engine: ReferenceEngine) -> None:
    """The row that writes the stop string ends before it; the other goes on to its limit."""
    jobs = await jobs_for(engine, PROMPTS[:2], GREEDY)
    whole = ["".join(token.text for token in row) for row in await run(engine, jobs)]
    stop = next(whole[0][i : i + 3] for i in range(4, len(whole[0])) if whole[0][i : i + 3] not in whole[1])
    stopped = [Job(job.token_ids, SamplingParams(max_new_tokens=12, temperature=0, stop=(stop,))) for job in jobs]
    rows = await run(engine, stopped)
    texts = ["".join(token.text for token in row) for row in rows]
    assert texts == [whole[0][: whole[0].find(stop)], whole[1]]
    assert [row[-1].finish_reason for row in rows] == ["stop", "length"]


async def test_the_end_token_ends_a_row(engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row ends with stop at the model's end token, whose own text is never shown."""
    jobs = await jobs_for(engine, ["You may"], GREEDY)
    plain = (await run(engine, jobs))[0]
    end = plain[4].id
    first = next(i for i, token in enumerate(plain) if token.id == end)
    monkeypatch.setattr(engine._generator, "eos", frozenset({end}))
    row = (await run(engine, jobs))[0]
    assert [token.id for token in row] == [token.id for token in plain[: first + 1]]
    assert row[-1].finish_reason == "stop"


async def test_stop_tokens_end_a_row_and_end_tokens_may_be_ignored(
    engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop token ends its row only, without its text; a row that ignores end tokens goes on behind them."""
    (job,) = await jobs_for(engine, PROMPTS[:1], GREEDY)
    (whole,) = ids(await run(engine, [job]))
    stop = next(token for token in whole[2:] if token not in whole[:2])
    end = whole.index(stop) + 1
    stopping = replace(job, params=replace(GREEDY, stop_token_ids=(stop,)))
    rows = await run(engine, [stopping, job])
    assert ids(rows) == [whole[:end], whole]
    assert (rows[0][-1].finish_reason, rows[0][-1].text) == ("stop", "")
    monkeypatch.setattr(engine._generator, "eos", frozenset({stop}))
    ignoring = replace(job, params=replace(GREEDY, ignore_eos=True))
    assert ids(await run(engine, [job, ignoring])) == [whole[:end], whole]


async def test_streamed_text_is_the_decoded_text(engine: ReferenceEngine, folder: Path) -> None:
    """The pieces, joined, are what the tokenizer decodes from all tokens at once."""
    row = (await run(engine, await jobs_for(engine, ["You may"], GREEDY)))[0]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = tokenizer.decode([token.id for token in row], skip_special_tokens=True)
    assert "".join(token.text for token in row) == whole


class _Oracle:
    """The model's own logits, one plain forward pass at a time."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """[V] behind these tokens."""
        with torch.no_grad():
            scores: torch.Tensor = self._model(torch.tensor([list(tokens)])).logits[0, -1].clone()
        return scores


SHAPED = {
    "repetition penalty": {"repetition_penalty": 1.4},
    "presence penalty": {"presence_penalty": 2.0},
    "negative presence penalty": {"presence_penalty": -2.0},
    "frequency penalty": {"frequency_penalty": 1.5},
    "logit bias": {"logit_bias": ((7, 6.0), (300, 3.5), (301, -100.0))},
    "all": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.7,
        "frequency_penalty": 0.4,
        "logit_bias": ((300, 3.0), (9, 4.0)),
    },
}


@pytest.mark.parametrize("shape", SHAPED.values(), ids=list(SHAPED))
async def test_penalties_and_biases(engine: ReferenceEngine, folder: Path, shape: dict[str, Any]) -> None:
    """Token for token what bias, transformers' repetition penalty and OpenAI's formula make of plain logits."""
    oracle, params = _Oracle(folder), replace(GREEDY, max_new_tokens=20, **shape)
    (job,) = await jobs_for(engine, ["You may"], params)
    new: list[int] = []
    while len(new) < 20 and not set(new) & engine._generator.eos:
        tokens = [*job.token_ids, *new]
        logits = oracle.logits(tokens)
        for token, bias in params.logit_bias:
            logits[token] += bias
        logits = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(torch.tensor([tokens]), logits[None])[0]
        for token, count in Counter(new).items():
            logits[token] -= params.presence_penalty + count * params.frequency_penalty
        new.append(int(logits.argmax()))
    assert ids(await run(engine, [job]))[0] == new
    plain = replace(GREEDY, max_new_tokens=20)
    assert ids(await run(engine, [replace(job, params=plain)]))[0] != new, "without it the answer is another"


async def test_shaped_rows_of_a_batch_do_not_mix(engine: ReferenceEngine) -> None:
    """Each row of a batch is penalized, biased and reported as it would be alone."""
    (job,) = await jobs_for(engine, ["You may"], GREEDY)
    jobs = [replace(job, params=replace(GREEDY, **shape)) for shape in SHAPED.values()]  # type: ignore[arg-type]
    jobs.append(replace(job, params=replace(GREEDY, logprobs=2)))
    together = await run(engine, jobs)
    assert ids(together) == [ids(await run(engine, [job]))[0] for job in jobs]
    assert all(token.logprob is None for row in together[:-1] for token in row)
    assert all(len(token.top_logprobs) == 2 for token in together[-1])


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(0, 1.0, 0.2), (50, 0.95, 0.1), (0, 1.0, 1.0)])
async def test_min_p(engine: ReferenceEngine, folder: Path, top_k: int, top_p: float, min_p: float) -> None:
    """Each token is the one that transformers' warpers and the seed's random number name."""
    oracle, temperature = _Oracle(folder), 3.0
    params = SamplingParams(12, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=3)
    (job,) = await jobs_for(engine, ["You may"], params)
    new = ids(await run(engine, [job]))[0]
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)]
    for position, token in enumerate(new):
        warped = warpers(torch.zeros((1, 1), dtype=torch.long), oracle.logits([*job.token_ids, *new[:position]])[None])
        probabilities, order = torch.softmax(warped[0].double(), -1).sort(descending=True, stable=True)
        index = torch.searchsorted(probabilities.cumsum(-1), uniform(3, 0, position), right=True)
        assert token == int(order[index])


async def test_logprobs_are_those_of_the_model_alone(engine: ReferenceEngine, folder: Path) -> None:
    """Whatever bends the choice, what is reported is the log-softmax of the logits as the model gave them."""
    oracle = _Oracle(folder)
    params = SamplingParams(
        10, temperature=1.7, repetition_penalty=1.5, frequency_penalty=1, logit_bias=((300, 4.0),), seed=1, logprobs=5
    )
    (job,) = await jobs_for(engine, ["You may"], params)
    row = (await run(engine, [job]))[0]
    for position, token in enumerate(row):
        expected = torch.log_softmax(oracle.logits([*job.token_ids, *(t.id for t in row[:position])]), -1)
        assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-4)
        values, order = expected.topk(5)
        assert [i for i, _ in token.top_logprobs] == order.tolist()
        assert [value for _, value in token.top_logprobs] == pytest.approx(values.tolist(), abs=1e-4)


async def test_logprobs_of_the_choice_alone(gpt2_engine: ReferenceEngine) -> None:
    """0 asks for each token's own and no others; None for none at all. Neither changes the tokens."""
    jobs = await jobs_for(gpt2_engine, ["You may"], GREEDY)
    plain = (await run(gpt2_engine, jobs))[0]
    own = (await run(gpt2_engine, [replace(jobs[0], params=replace(GREEDY, logprobs=0))]))[0]
    assert [token.id for token in own] == [token.id for token in plain]
    assert all(token.logprob is None for token in plain)
    assert all(token.logprob is not None and token.top_logprobs == () for token in own)


@pytest.mark.parametrize("least", [0, 1, 3, 6, 12])
async def test_no_end_token_comes_before_the_least_length(
    engine: ReferenceEngine, folder: Path, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    """End tokens cannot be chosen before min_new_tokens, as in transformers, and end the row from there on."""
    jobs = await jobs_for(engine, ["You may"], GREEDY)
    end = (await run(engine, jobs))[0][0].id  # greedy, it would be the very first token
    monkeypatch.setattr(engine._generator, "eos", frozenset({end}))
    params = replace(GREEDY, min_new_tokens=least, logit_bias=((end, 100.0),))
    row = (await run(engine, [replace(jobs[0], params=params)]))[0]
    assert [token.id == end for token in row] == ([False] * least + [True])[:12]
    assert row[-1].finish_reason == ("stop" if least < 12 else "length")
    oracle, new = _Oracle(folder), list[int]()
    ban = MinNewTokensLengthLogitsProcessor(len(jobs[0].token_ids), least, end)
    for token in row:
        tokens = [*jobs[0].token_ids, *new]
        logits = oracle.logits(tokens)
        logits[end] += 100
        new.append(int(ban(torch.tensor([tokens]), logits[None]).argmax()))
        assert token.id == new[-1]


async def test_no_stop_string_counts_before_the_least_length(engine: ReferenceEngine) -> None:
    """A stop string written too early is text; the next one at or behind min_new_tokens ends the row."""
    (job,) = await jobs_for(engine, ["You may"], replace(GREEDY, max_new_tokens=12, logit_bias=((64, 100.0),)))
    piece = engine.token_bytes(64).decode()  # forced, every token is this one

    async def text(least: int) -> tuple[str, int, str | None]:
        params = replace(job.params, stop=(piece * 2,), min_new_tokens=least)
        row = (await run(engine, [replace(job, params=params)]))[0]
        return "".join(token.text for token in row), len(row), row[-1].finish_reason

    assert await text(0) == ("", 2, "stop")
    assert await text(2) == ("", 2, "stop")
    assert await text(5) == (piece * 3, 5, "stop")
    assert await text(12) == (piece * 10, 12, "stop")


async def test_token_bytes_join_to_the_text(engine: ReferenceEngine) -> None:
    """The bytes of a row's tokens, control tokens aside, are its text; an unknown id has none."""
    params = SamplingParams(60, temperature=2.0, top_k=0, top_p=1.0, seed=5)
    row = (await run(engine, await jobs_for(engine, ["grüße 😀"], params)))[0]
    raw = b"".join(engine.token_bytes(token.id) for token in row if token.id not in engine._generator.eos)
    assert len({token.id for token in row}) > 5
    assert codecs.utf_8_decode(raw, "replace", False)[0] == "".join(token.text for token in row)
    assert engine.token_bytes(10**6) == b""


@pytest.fixture
def slow(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine whose every step waits for ``gate``, and counts."""
    engine = build(tiny_gpt2, max_queue=2, timeout=30)
    gate, steps, original = threading.Semaphore(0), [], generator._SampleTokens.__call__

    def gated(self: Any, input_ids: Any, scores: Any) -> Any:
        gate.acquire()
        steps.append(time.monotonic())
        return original(self, input_ids, scores)

    monkeypatch.setattr(generator._SampleTokens, "__call__", gated)
    yield engine, gate, steps
    gate.release(100_000)
    engine.close()


async def test_closing_a_stream_stops_its_generation_within_a_step(slow: Any) -> None:
    """A client that goes away costs at most the step under way; the next request starts at once."""
    engine, gate, steps = slow
    job = Job((5, 6, 7), SamplingParams(max_new_tokens=100, temperature=0))
    stream = engine.stream([job])
    gate.release(2)
    await anext(stream)
    await anext(stream)
    await stream.aclose()
    gate.release(3)  # one for the step under way, two for the request behind it
    after = await run(engine, [Job((5, 6), SamplingParams(max_new_tokens=2, temperature=0))])
    assert len(after[0]) == 2
    assert len(steps) <= 5


async def test_a_request_cancelled_in_the_queue_never_runs(slow: Any) -> None:
    """Work whose client left before it began is thrown away."""
    engine, gate, steps = slow
    running = asyncio.create_task(run(engine, [Job((5,), SamplingParams(max_new_tokens=1, temperature=0))]))
    background = asyncio.create_task(run(engine, [Job((6,), SamplingParams(max_new_tokens=50, temperature=0))]))
    await until(lambda: engine._running and engine._queue.interactive == 1)
    background.cancel()
    await asyncio.gather(background, return_exceptions=True)
    gate.release(5)
    await running
    await run(engine, [Job((7,), SamplingParams(max_new_tokens=1, temperature=0))])  # would be served after it
    assert len(steps) == 2


async def test_a_full_queue_refuses_with_a_time_to_come_back(slow: Any) -> None:
    """With MAX_QUEUE requests waiting the next is refused at once, and nothing waiting is lost."""
    engine, gate, _ = slow
    job = Job((5,), SamplingParams(max_new_tokens=1, temperature=0))
    first = asyncio.create_task(run(engine, [job]))
    await until(lambda: engine._running)  # taken by the engine thread, which now waits at the gate
    waiting = [asyncio.create_task(run(engine, [job])) for _ in range(2)]
    await until(lambda: engine._queue.interactive == 2)
    with pytest.raises(TooManyRequests) as caught:
        await run(engine, [job])
    assert caught.value.retry_after is not None
    assert caught.value.retry_after >= 1
    gate.release(10)
    assert [len(rows[0]) for rows in await asyncio.gather(first, *waiting)] == [1, 1, 1]


async def test_many_rows_of_one_request_take_turns(slow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run a batch at a time, others come between, and each row's tokens are those that it has alone."""
    engine, gate, _ = slow
    gate.release(1000)
    monkeypatch.setattr(reference, "_MAX_BATCH_ROWS", 4)
    params = SamplingParams(max_new_tokens=3, temperature=1, seed=1, n=3)
    jobs = [Job((i + 5, 7), replace(params, seed=i)) for i in range(4)]
    alone = [row for job in jobs for row in await run(engine, [job])]
    while gate.acquire(blocking=False):
        pass
    many = asyncio.create_task(run(engine, jobs))
    await until(lambda: engine._running)
    between = asyncio.create_task(run(engine, [Job((5,), GREEDY)]))
    await until(lambda: engine._queue.interactive)
    sizes: list[int] = []
    generate = engine._generator.generate
    monkeypatch.setattr(
        engine._generator, "generate", lambda rows, deliver: (sizes.append(len(rows)), generate(rows, deliver))
    )
    gate.release(1000)
    await between
    assert ids(await many) == ids(alone)
    assert sizes == [1, 4, 4]


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (Job((), GREEDY), "no tokens"),
        (Job((5,) * 60, replace(GREEDY, max_new_tokens=6)), "context length is 64 tokens. .* 66 tokens .60 in"),
    ],
)
async def test_what_does_not_fit_is_refused(tiny_gpt2: Path, job: Job, says: str) -> None:
    """Before it reaches the model, which would fail on it."""
    engine = build(tiny_gpt2)
    engine.info = replace(engine.info, context_length=64)
    with pytest.raises(InvalidRequest, match=says):
        await run(engine, [job])
    engine.close()


async def test_interactive_requests_go_before_background_ones(slow: Any) -> None:
    """Those that came later too; each kind has a queue of its own, and a full one refuses its own kind only."""
    engine, gate, _ = slow
    order: list[str] = []

    async def ask(name: str, *, background: bool) -> None:
        await run(engine, [Job((5,), SamplingParams(max_new_tokens=1, temperature=0), background)])
        order.append(name)

    tasks = [asyncio.create_task(ask("first", background=False))]
    await until(lambda: tasks[0].done() or engine._running)
    for count in (1, 2):
        tasks.append(asyncio.create_task(ask(f"background {count}", background=True)))
        await until(lambda count=count: engine._queue.background == count)
    with pytest.raises(TooManyRequests):
        await ask("background 3", background=True)
    for count in (1, 2):
        tasks.append(asyncio.create_task(ask(f"interactive {count}", background=False)))
        await until(lambda count=count: engine._queue.interactive == count)
    with pytest.raises(TooManyRequests):
        await ask("interactive 3", background=False)
    gate.release(10)
    await asyncio.gather(*tasks)
    assert order == ["first", "interactive 1", "interactive 2", "background 1", "background 2"]


async def test_a_deadline_ends_a_request(slow: Any) -> None:
    """After REQUEST_TIMEOUT_SECONDS the caller gets an error, not a hang."""
    engine, gate, _ = slow
    engine._timeout = 0.05
    with pytest.raises(DeadlineExceeded, match="REQUEST_TIMEOUT_SECONDS"):
        await run(engine, [Job((5,), SamplingParams(max_new_tokens=50, temperature=0))])
    gate.release(1)


async def test_a_failing_step_fails_its_request_only(
    gpt2_engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception inside generation becomes an internal error without its text; the next request works."""
    with monkeypatch.context() as patched:
        patched.setattr(generator, "sample", lambda *args: 1 // 0)
        with pytest.raises(InternalError) as caught:
            await run(gpt2_engine, [Job((5,), GREEDY)])
    assert "division" not in caught.value.message
    assert "ZeroDivisionError" in caplog.text
    assert len((await run(gpt2_engine, [Job((5,), GREEDY)]))[0]) == 12


async def test_logits_that_are_not_numbers_end_the_request(
    gpt2_engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN logits are an error, never a token."""
    original = generator._SampleTokens.__call__
    monkeypatch.setattr(
        generator._SampleTokens,
        "__call__",
        lambda self, ids, scores: original(self, ids, torch.full_like(scores, torch.nan)),
    )
    with pytest.raises(InternalError, match="not numbers"):
        await run(gpt2_engine, [Job((5,), GREEDY)])


async def test_closing_lets_admitted_requests_finish(tiny_gpt2: Path) -> None:
    """With grace, what was admitted finishes; what comes after is refused."""
    engine = build(tiny_gpt2)
    tasks = [asyncio.create_task(run(engine, [Job((5,), GREEDY)])) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.to_thread(engine.close, 30)
    assert [len(rows[0]) for rows in await asyncio.gather(*tasks)] == [12, 12, 12]
    with pytest.raises(Draining):
        await run(engine, [Job((5,), GREEDY)])


async def test_closing_ends_what_does_not_finish_in_time(slow: Any) -> None:
    """Without grace, running and waiting requests end with a clear error."""
    engine, gate, _ = slow
    tasks = [
        asyncio.create_task(run(engine, [Job((5,), SamplingParams(max_new_tokens=50, temperature=0))]))
        for _ in range(2)
    ]
    await until(lambda: engine._running and engine._queue.interactive == 1)
    closing = asyncio.create_task(asyncio.to_thread(engine.close, 0.05))
    await until(engine._aborting.is_set)
    gate.release(100)
    await closing
    assert [type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)] == [Draining, Draining]


async def test_many_at_once_get_what_they_would_alone(llama_engine: ReferenceEngine) -> None:
    """Thirty concurrent requests, from tokenizing to text, do not disturb each other."""
    texts = [f"{PROMPTS[i % 4]} {i}" for i in range(30)]
    params = SamplingParams(max_new_tokens=6, seed=3, temperature=1.0)

    async def one(text: str) -> list[int]:
        return ids(await run(llama_engine, await jobs_for(llama_engine, [text], params)))[0]

    assert await asyncio.gather(*(one(text) for text in texts)) == [await one(text) for text in texts]


async def test_the_engine_threads_log_lines_carry_the_request_id(
    gpt2_engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine thread logs about a request is found by the request's id."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonFormatter())
    logging.getLogger("warmstart.engine").addHandler(handler)
    token = request_facts.set({"request_id": "r7"})
    try:
        monkeypatch.setattr(generator, "sample", lambda *args: 1 // 0)
        with pytest.raises(InternalError):
            await run(gpt2_engine, [Job((5,), GREEDY)])
    finally:
        request_facts.reset(token)
        logging.getLogger("warmstart.engine").removeHandler(handler)
    assert json.loads(lines.getvalue())["request_id"] == "r7"


async def test_stats(tiny_gpt2: Path) -> None:
    """This engine updates the same statistics: tokens, running and waiting requests, and how requests ended."""
    metrics = Metrics()
    engine = build(tiny_gpt2, metrics=metrics.model("m"), max_queue=1)
    rows = await run(engine, [Job((1, 2, 3), replace(GREEDY, max_new_tokens=4, n=2)), Job((4,), GREEDY)])
    stats = metrics.model_stats("m")
    assert (stats.finished, stats.prompt_tokens) == (1, 4)
    assert stats.generated_tokens == sum(map(len, rows))
    assert stats.time_to_first_token is not None
    endless = [Job((1,), replace(GREEDY, max_new_tokens=120))]
    async with aclosing(engine.stream(endless)) as first:
        await anext(first)
        waiting = asyncio.create_task(run(engine, endless))
        await until(lambda: metrics.model_stats("m").waiting == 1)
        with pytest.raises(TooManyRequests):
            await run(engine, endless)
        assert metrics.model_stats("m").running == 1
        waiting.cancel()
    await until(lambda: metrics.model_stats("m").running == 0 == metrics.model_stats("m").waiting)
    stats = metrics.model_stats("m")
    await until(lambda: metrics.model_stats("m").cancelled == 2)
    assert stats.rejected == 1
    engine.close()
