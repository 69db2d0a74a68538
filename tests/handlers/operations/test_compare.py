"""handlers.operations.compare: variants side by side, each with its figures, its errors and what every model makes of
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from handlers.context import Clock, Context, RequestLimits
from handlers.operations import compare
from handlers.schemas.responses import CompareChunk, CompareResponse
from runtime.errors import ContextLengthExceeded, Draining, InvalidRequest, ModelNotFound, ModelUnavailable
from runtime.status import ModelStatus
from runtime.types import Job, Message, SamplingParams, Token, TokenUsage
from tests.support.contexts import real
from tests.support.fakes import INFO, FakeEngine, fake_context, serving, until

PROMPT = {"prompt": "x"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@dataclass
class Models:
    """Several fake models, of which only so many can be loaded at once.

    Args:
        engines: name -> its engine, or why it cannot be loaded; the first is the default.
        capacity: how many fit the memory.
        loads: names, in the order in which they were loaded.
    """

    engines: Mapping[str, FakeEngine | Exception]
    capacity: int = 10
    loads: list[str] = field(default_factory=list)
    holders: dict[str, int] = field(default_factory=dict)  # of each loaded model
    alive = ready = True
    draining = False

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[FakeEngine]:
        name = name or next(iter(self.engines))
        if name not in self.engines:
            raise ModelNotFound(f"no model {name!r} here", param="model")
        engine = self.engines[name]
        if isinstance(engine, Exception):
            raise engine
        while name not in self.holders:
            idle = next((held for held, users in self.holders.items() if not users), None)
            if len(self.holders) < self.capacity:
                self.holders[name] = 0
                self.loads.append(name)
            elif idle is not None:
                del self.holders[idle]
            else:
                await asyncio.sleep(0.001)
        self.holders[name] += 1
        try:
            yield engine
        finally:
            self.holders[name] -= 1

    def status(self) -> list[ModelStatus]:
        return [
            ModelStatus(
                id=name,
                source="folder",
                state="ready" if name in self.holders else "unloaded",
                default=i == 0,
                created=1,
                memory_bytes=1000 + i,
            )
            for i, name in enumerate(self.engines)
        ]


def engine(name: str, *words: str, kind: type[FakeEngine] = FakeEngine, **options: Any) -> FakeEngine:
    """One of several; a token per character of any text. Options are the engine's, or of what is known of the model."""
    facts = {fact: options.pop(fact) for fact in ("context_length", "vocabulary_size") if fact in options}
    info = replace(INFO, name=name, **facts)
    return kind(words or ("Hello", " there", "."), info=info, **{"token_length": len} | options)


def context(*engines: FakeEngine, capacity: int = 10, **others: Exception) -> tuple[Context, Models]:
    """A context on these models, with a clock that goes on by a second each time it is read."""
    models = Models({one.info.name: one for one in engines} | others, capacity)
    seconds = count(100)
    clock = Clock(time=lambda: 1.0, monotonic=lambda: float(next(seconds)))
    return replace(fake_context(), models=models, clock=clock), models  # type: ignore[arg-type]


async def test_answer() -> None:
    """The whole answer, in the order of the variants."""
    ctx, models = context(engine("one"), engine("two", "Good", " day"))
    answer = await compare.handle(PROMPT | {"variants": [{}, {"model": "two", "label": "other"}]}, ctx)
    CompareResponse.model_validate(answer, extra="forbid", strict=True)
    assert answer["object"] == "comparison"
    first, second = answer["answers"]
    assert first | {"seconds": 0, "time_to_first_token_seconds": 0, "tokens_per_second": 0} == {
        "index": 0,
        "label": "one",
        "model": "one",
        "text": "Hello there.",
        "finish_reason": "stop",
        "prompt_tokens": 1,
        "completion_tokens": 3,
        "seconds": 0,
        "time_to_first_token_seconds": 0,
        "tokens_per_second": 0,
        "memory_bytes": 1000,
        # The fake's n-th token has -(n + 1) / 4; the last ends the text and is none of it. The other model, whose
        # tokens are characters, is told all of the text.
        "mean_logprobs": {"one": pytest.approx(-(1 + 2) / 4 / 2), "two": pytest.approx(-(12 + 1) / 2 / 4)},
        "error": None,
    }
    assert (second["label"], second["model"], second["text"], second["memory_bytes"]) == (
        "other",
        "two",
        "Good day",
        1001,
    )
    assert second["mean_logprobs"] == {"one": pytest.approx(-(8 + 1) / 2 / 4), "two": pytest.approx(-0.25)}
    assert not any(models.holders.values())


async def test_figures() -> None:
    """Times are the clock's, from the start of the generation to its first token and to its end."""
    ctx, _ = context(engine("one"))
    (answer,) = (await compare.handle(PROMPT | {"variants": [{}], "score": False}, ctx))["answers"]
    assert answer["time_to_first_token_seconds"] == 1
    assert answer["seconds"] == 2
    assert answer["tokens_per_second"] == 1.5
    assert answer["mean_logprobs"] == {}


async def test_settings() -> None:
    """A variant's fields replace the request's own; what it leaves out, or null, is the request's."""
    one = engine("one")
    ctx, _ = context(one)
    payload = PROMPT | {
        "temperature": 0.5,
        "top_k": 7,
        "seed": 3,
        "stop": "!",
        "max_new_tokens": 2,
        "variants": [{}, {"temperature": 0, "top_k": None}, {"seed": 4, "repetition_penalty": 1.5, "min_p": 0.1}],
    }
    await compare.handle(payload, ctx)
    params = [jobs[0].params for jobs in one.jobs]
    assert [(p.temperature, p.top_k, p.seed) for p in params] == [(0.5, 7, 3), (0, 7, 3), (0.5, 7, 4)]
    assert [(p.repetition_penalty, p.min_p) for p in params] == [(1, 0), (1, 0), (1.5, 0.1)]
    assert {(p.stop, p.max_new_tokens, p.n, p.logprobs) for p in params} == {(("!",), 2, 1, 0)}


async def test_chat() -> None:
    """A chat goes through each model's own template, to generate and to score, with the stops that it needs."""
    engines = engine("one"), engine("two", chat_stops=("\nUser:",))
    ctx, _ = context(*engines)
    answer = await compare.handle(CHAT | {"variants": [{}, {"model": "two"}]}, ctx)
    assert all(None not in one["mean_logprobs"].values() for one in answer["answers"])
    for one in engines:
        assert one.chats == [(Message("user", "Hi"),)] * 2
        generating, scoring = (jobs[0] for jobs in one.jobs)
        assert generating.params.stop == one.chat_stops
        assert generating.token_ids == scoring.token_ids == (0, 1)
        assert (scoring.params.stop, len(scoring.params.forced)) == ((), 12)


async def test_nothing_is_scored_twice() -> None:
    """With one model, its tokens' log-probabilities are those they were chosen with; with score off, none are asked."""
    one = engine("one")
    ctx, _ = context(one)
    answer = await compare.handle(PROMPT | {"variants": [{}, {"temperature": 0}]}, ctx)
    assert len(one.jobs) == 2
    assert [a["mean_logprobs"] for a in answer["answers"]] == [{"one": pytest.approx(-0.375)}] * 2
    await compare.handle(PROMPT | {"variants": [{}], "score": False}, ctx)
    assert one.jobs[-1][0].params.logprobs is None


async def test_a_text_cut_short_is_scored_whole() -> None:
    """Where no end token ends a text, its last token counts."""
    ctx, _ = context(engine("one"))
    (answer,) = (await compare.handle(PROMPT | {"variants": [{}], "max_new_tokens": 2}, ctx))["answers"]
    assert (answer["finish_reason"], answer["mean_logprobs"]) == ("length", {"one": pytest.approx(-0.375)})


async def test_stream() -> None:
    """Pieces of all variants, an answer as each ends, and last the whole, equal to the plain answer but for times."""
    payload = PROMPT | {"variants": [{}, {"model": "two"}]}

    def make() -> Context:
        return context(engine("one", pause=0.002), engine("two", "Good", "", " day"))[0]

    *pieces, last = [event async for event in compare.stream(payload, make())]
    for event in (*pieces, last):
        CompareChunk.model_validate(event, extra="forbid", strict=True)
    texts, answers = ["", ""], {}
    for event in pieces:
        if "answer" in event:
            answers[event["index"]] = event["answer"]
        else:
            assert event["index"] not in answers
            texts[event["index"]] += event["text"]
    assert list(answers) == [1, 0], "each is told of as it ends"
    assert texts == ["Hello there.", "Good day"]
    assert [answers[i]["text"] for i in (0, 1)] == texts
    assert all(answer["mean_logprobs"] == {} for answer in answers.values())
    times = dict.fromkeys(("seconds", "time_to_first_token_seconds", "tokens_per_second"))
    whole = await compare.handle(payload, make())
    assert [a | times for a in last["answers"]] == [a | times for a in whole["answers"]]
    assert [a | {"mean_logprobs": {}} for a in last["answers"]] == [answers[0], answers[1]]


async def test_a_failing_variant_does_not_disturb_the_others() -> None:
    """Unknown, unloadable, failing midway or refused: the error stands in the answer, and no model waits for it."""
    broken = engine("broken", fail_after=1, failure=Draining("going down"))
    ctx, models = context(engine("one"), broken, engine("small", context_length=1), gone=ModelUnavailable("no memory"))
    names = ["broken", "nobody", "gone", "one", "small"]
    answer = await compare.handle(PROMPT | {"variants": [{"model": name} for name in names]}, ctx)
    CompareResponse.model_validate(answer, extra="forbid", strict=True)
    errors = {a["model"]: a["error"] for a in answer["answers"]}
    assert errors == {
        "broken": {"code": "draining", "message": "going down"},
        "nobody": {"code": "model_not_found", "message": "no model 'nobody' here"},
        "gone": {"code": "model_unavailable", "message": "no memory"},
        "one": None,
        "small": errors["small"],
    }
    assert errors["small"]["code"] == "context_length_exceeded"
    for one in answer["answers"]:
        if one["error"]:
            assert (one["text"], one["seconds"], one["completion_tokens"]) == ("", None, None)
        scored = {name for name, mean in one["mean_logprobs"].items() if mean is not None}
        assert one["mean_logprobs"].keys() == set(names)
        assert scored == ({"one"} if one["model"] == "one" else set())
    assert not any(models.holders.values())


class Picky(FakeEngine):
    """Takes no text for a text."""

    async def encode_plain(self, text: str, *, background: bool = False) -> tuple[int, ...]:
        raise InvalidRequest("contains text that reads as a control token")


class Full(FakeEngine):
    """Has no room behind its prompt."""

    async def stream(self, jobs: Sequence[Job]) -> AsyncGenerator[Token, None]:
        if jobs[0].params.forced:
            raise ContextLengthExceeded("no room")
        async for token in super().stream(jobs):
            yield token


async def test_what_cannot_be_scored_is_null() -> None:
    """An empty answer has no mean, nor has one that another model has no room, no tokens or no words for."""
    few = engine("few", vocabulary_size=2)
    ctx, _ = context(engine("one", "", ""), engine("picky", kind=Picky), engine("full", kind=Full), few)
    names = ("one", "picky", "full", "few")
    answer = await compare.handle(PROMPT | {"variants": [{"model": name} for name in names]}, ctx)
    empty, *said = answer["answers"]
    assert empty["mean_logprobs"] == dict.fromkeys(names)
    for one in said:
        scored = {name for name, mean in one["mean_logprobs"].items() if mean is not None}
        assert scored == {"one", one["model"]}


@pytest.mark.parametrize("capacity", [1, 2])
async def test_models_that_do_not_fit_together_take_turns(capacity: int) -> None:
    """No variant holds a model while it waits for another, so any order gets through however little fits."""
    engines = [engine(name, pause=0.001) for name in ("one", "two", "three")]
    ctx, models = context(*engines, capacity=capacity)
    variants = [{"model": name} for name in ("one", "two", "three", "one", "two")]
    async with asyncio.timeout(20):
        answers = await asyncio.gather(
            compare.handle(PROMPT | {"variants": variants}, ctx),
            compare.handle(PROMPT | {"variants": variants[::-1]}, ctx),
        )
    for answer in answers:
        assert [a["text"] for a in answer["answers"]] == ["Hello there."] * 5
        assert all(None not in a["mean_logprobs"].values() for a in answer["answers"])
    assert not any(models.holders.values())


async def test_what_is_loaded_scores_first() -> None:
    """Scoring begins with the models that are there, which saves a load where not all fit."""
    ctx, models = context(engine("one"), engine("two"), capacity=1)
    await compare.handle(PROMPT | {"variants": [{}, {"model": "two"}]}, ctx)
    assert models.loads == ["one", "two", "one"]


@pytest.mark.parametrize("when", ["generating", "waiting", "scoring"])
async def test_a_caller_that_goes_away_ends_everything(when: str) -> None:
    """Whatever is under way, every stream is closed and every model given back."""
    slow = [engine(name, *("word",) * 100, pause=0.002, token_length=200) for name in ("one", "two")]
    ctx, models = context(*slow, capacity=1 if when == "waiting" else 2)
    variants = [{"model": name} for name in ("one", "two", "one")]
    task = asyncio.create_task(compare.handle(PROMPT | {"variants": variants}, ctx))
    await until(lambda: when != "scoring" or any(jobs[0].params.forced for one in slow for jobs in one.jobs))
    await until(lambda: any(one.open_streams for one in slow))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [one.open_streams for one in slow] == [0, 0]
    assert not any(models.holders.values())


async def test_a_stream_that_is_closed_early_ends_everything() -> None:
    """The same for a stream that is not read to its end."""
    slow = engine("one", *("word",) * 10_000, pause=0.001)
    ctx, models = context(slow)
    async with aclosing(compare.stream(PROMPT | {"variants": [{}, {}], "max_new_tokens": 10_000}, ctx)) as events:
        async for event in events:
            assert event["text"] == "word"
            break
        assert slow.open_streams == 2
    assert slow.open_streams == 0
    assert not any(models.holders.values())


async def test_a_client_that_disconnects_ends_everything() -> None:
    """The same over HTTP."""
    slow = engine("one", *("word",) * 10_000, pause=0.001)
    ctx, models = context(slow)
    payload = PROMPT | {"variants": [{}, {}], "max_new_tokens": 10_000, "stream": True}
    async with serving(ctx) as url, aiohttp.ClientSession() as session:
        async with session.post(f"{url}/models/compare", json=payload) as response:
            await response.content.readline()
            assert slow.open_streams == 2
        await until(lambda: not slow.open_streams and not any(models.holders.values()))


async def test_usage_is_of_all_variants_together() -> None:
    """The usage that is told is their sum; scoring generates nothing."""
    ctx, _ = context(engine("one", cached_tokens=1), engine("two", "Good", " day"))
    told: list[TokenUsage] = []
    ctx = replace(ctx, observe=told.append)
    await compare.handle(CHAT | {"variants": [{}, {"model": "two"}, {}]}, ctx)
    assert told == [TokenUsage(6, 8, 2)]


@pytest.mark.parametrize(
    ("payload", "limits", "param"),
    [
        (PROMPT | {"variants": []}, RequestLimits(), "variants"),
        (PROMPT | {"variants": [{}] * 9}, RequestLimits(), "variants"),
        (PROMPT | {"variants": [{}, {}, {}]}, RequestLimits(max_sequences=2), "variants"),
        (PROMPT | CHAT | {"variants": [{}]}, RequestLimits(), "messages"),
        ({"variants": [{}]}, RequestLimits(), "messages"),
        ({"prompt": None, "messages": None, "variants": [{}]}, RequestLimits(), "messages"),
        (PROMPT | {"variants": [{}, {"temperature": 3}]}, RequestLimits(), "variants.1.temperature"),
        (PROMPT | {"variants": [{"top_p": 1.1}]}, RequestLimits(), "variants.0.top_p"),
        (PROMPT | {"variants": [{"seed": 2**63}]}, RequestLimits(), "variants.0.seed"),
        (PROMPT | {"variants": [{"stop": "x"}]}, RequestLimits(), "variants.0.stop"),
        (PROMPT | {"variants": [{"label": "l" * 65}]}, RequestLimits(), "variants.0.label"),
        (PROMPT | {"variants": [5]}, RequestLimits(), "variants.0"),
        (PROMPT | {"variants": [{}], "temperature": -1}, RequestLimits(), "temperature"),
        ({"prompt": "four", "variants": [{}]}, RequestLimits(max_prompt_chars=3), "prompt"),
        (CHAT | {"variants": [{}]}, RequestLimits(max_prompt_chars=1), "messages"),
        ({"messages": [{"role": "nobody", "content": ""}], "variants": [{}]}, RequestLimits(), "messages.0.role"),
    ],
)
async def test_wrong_requests(payload: dict[str, Any], limits: RequestLimits, param: str) -> None:
    """What is wrong is named, down to the variant's field, before any model is asked."""
    one = engine("one")
    ctx = replace(context(one)[0], limits=limits)
    with pytest.raises(InvalidRequest) as caught:
        compare.stream(payload, ctx)
    assert caught.value.param == param
    assert one.jobs == []


async def test_numbers_as_texts() -> None:
    """A variant's numbers are read as the request's own are."""
    one = engine("one")
    variants: Sequence[dict[str, Any]] = [{"temperature": "0", "seed": "7"}]
    await compare.handle(PROMPT | {"variants": variants}, context(one)[0])
    assert (one.jobs[0][0].params.temperature, one.jobs[0][0].params.seed) == (0, 7)


# On real models


async def test_real_models_that_do_not_fit_together_take_turns(tiny_llama: Path, tiny_gpt2: Path) -> None:
    """Within a memory budget that has room for one, two models answer and score as they do with room for both."""
    models = {"model_name": str(tiny_llama), "models": str(tiny_gpt2), "kv_cache_bytes": 8 << 20}
    variants = [{"model": model, "seed": seed} for seed in (1, 2) for model in ("tiny-llama", "tiny-gpt2")]
    found = []
    for budget in (12 << 20, 40 << 20):
        async with real(memory_budget_bytes=budget, **models) as ctx, asyncio.timeout(60):
            answer = await compare.handle({"prompt": "You may", "variants": variants, "max_new_tokens": 12}, ctx)
            found.append([(a["error"], a["text"], a["mean_logprobs"]) for a in answer["answers"]])
            evictions = sum(status.evictions for status in ctx.models.status())
            assert bool(evictions) == (budget == 12 << 20)
            assert not any(status.running for status in ctx.models.status())
    assert found[0] == found[1]
    assert all(error is None and None not in means.values() for error, _, means in found[0])


def mean_of(model: Any, prompt: Sequence[int], text: Sequence[int]) -> float:
    """What transformers makes of a text behind a prompt."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1]
    return float(torch.log_softmax(logits, -1).gather(1, torch.tensor(text)[:, None]).mean())


@pytest.mark.slow
async def test_two_models_and_two_settings(tiny_llama: Path) -> None:
    """The embedded model twice and a tiny one: each mean is what transformers computes in float32 from that model's own
    prompt, and the usage is the sum of the answers'.
    """
    from transformers import AutoModelForCausalLM

    told: list[TokenUsage] = []
    names = ["smollm2-135m-instruct", "tiny-llama"]
    chat = (Message("user", "What is the capital of France?"),)
    variants = [{"temperature": 0}, {"temperature": 1, "seed": 5}, {"model": "tiny-llama", "temperature": 0}]
    payload = {
        "messages": [{"role": "user", "content": chat[0].content}],
        "variants": variants,
        "max_new_tokens": 16,
    }
    async with real(models=str(tiny_llama)) as ctx, real(engine="reference") as slow:
        answer = await compare.handle(payload, replace(ctx, observe=told.append))
        answers = answer["answers"]
        assert answers[0]["text"] == "The capital of France is Paris."
        assert [a["model"] for a in answers] == [names[0], names[0], names[1]]
        assert told[0].completion_tokens == sum(a["completion_tokens"] for a in answers)
        assert told[0].prompt_tokens == sum(a["prompt_tokens"] for a in answers)
        async with slow.models.lease(None) as reference:
            oracles = {
                names[0]: reference._generator._model,  # type: ignore[attr-defined]
                names[1]: AutoModelForCausalLM.from_pretrained(tiny_llama, dtype="float32"),
            }
            for name in names:
                async with ctx.models.lease(name) as engine:
                    prompt = await engine.encode_chat(chat)
                    for variant, one in zip(variants, answers, strict=True):
                        text = list(await engine.encode_plain(one["text"]))
                        if one["model"] == name:
                            settings = SamplingParams(
                                16,
                                temperature=float(variant["temperature"]),
                                seed=5,  # of no effect on the greedy ones
                                stop=engine.chat_stops,
                            )
                            async with aclosing(engine.stream([Job(prompt, settings)])) as tokens:
                                text = [token.id async for token in tokens]
                            text = text[: len(text) - (one["finish_reason"] == "stop")]
                        assert one["mean_logprobs"][name] == pytest.approx(
                            mean_of(oracles[name], prompt, text), abs=2e-3
                        )
