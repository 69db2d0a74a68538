"""handlers.operations.complete, and the limits on tokens that it shares with generate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from handlers.context import RequestLimits
from handlers.operations import complete, generate
from handlers.schemas.responses import TextChunk, TextResponse
from runtime.errors import InvalidRequest
from tests.support.fakes import FakeEngine, fake_context, usage


async def test_answer() -> None:
    """The whole answer: the completion without its prompt."""
    answer = await complete.handle({"prompt": "Say:"}, fake_context(FakeEngine(token_length=4)))
    assert answer == {
        "text": "Hello there.",
        "sequences": [{"index": 0, "text": "Hello there.", "finish_reason": "stop"}],
        "model": "fake",
        "usage": usage(4, 3),
    }
    TextResponse.model_validate(answer, extra="forbid", strict=True)


@pytest.mark.parametrize("echo", [False, True])
async def test_echo(echo: bool) -> None:
    """echo puts the prompt before the completion, whole and streamed."""
    payload = {"prompt": ["A", "B"], "num_return_sequences": 2, "echo": echo}
    prefix = ["A", "A", "B", "B"] if echo else [""] * 4
    answer = await complete.handle(payload, fake_context())
    assert [s["text"] for s in answer["sequences"]] == [f"{p}Hello there." for p in prefix]
    texts = [""] * 4
    async for event in complete.stream(payload, fake_context()):
        TextChunk.model_validate(event, extra="forbid", strict=True)
        if "index" in event:
            texts[event["index"]] += event["text"]
    assert texts == [s["text"] for s in answer["sequences"]]


async def test_echo_as_one_event() -> None:
    """A sequence whose only event is its end still brings its prompt."""
    events = [e async for e in complete.stream({"prompt": "A", "echo": True}, fake_context(FakeEngine(("", ""))))]
    assert events[0] == {"index": 0, "text": "A", "finish_reason": "stop"}


def test_wrong_request_fails_before_the_stream() -> None:
    """A wrong request fails when the stream is asked for, not when it is first read."""
    with pytest.raises(InvalidRequest, match="prompt: field required"):
        complete.stream({}, fake_context())


@pytest.mark.parametrize("operation", [generate, complete])
@pytest.mark.parametrize(
    ("prompt_tokens", "given", "context", "most"),
    [
        pytest.param(10, {}, 1000, 90, id="max_length's default holds prompt and answer"),
        pytest.param(99, {}, 1000, 1, id="room for one"),
        pytest.param(10, {"max_length": 30}, 1000, 20, id="max_length"),
        pytest.param(10, {"max_length": 11}, 1000, 1, id="the shortest max_length"),
        pytest.param(10, {"max_new_tokens": 500}, 1000, 500, id="max_new_tokens replaces the default of max_length"),
        pytest.param(500, {"max_new_tokens": 7}, 1000, 7, id="also behind a prompt longer than that default"),
        pytest.param(10, {"max_new_tokens": None}, 1000, 90, id="null is not given"),
        pytest.param(10, {"max_length": 30, "max_new_tokens": 5}, 1000, 5, id="both: max_new_tokens is tighter"),
        pytest.param(10, {"max_length": 30, "max_new_tokens": 50}, 1000, 20, id="both: max_length is tighter"),
        pytest.param(10, {"max_length": 100, "max_new_tokens": 500}, 1000, 90, id="the default, but given, holds"),
        pytest.param(10, {"max_length": 500}, 40, 30, id="the context is tighter than max_length"),
        pytest.param(10, {"max_new_tokens": 500}, 40, 30, id="the context is tighter than max_new_tokens"),
        pytest.param(10, {}, 40, 30, id="the context is tighter than the default"),
    ],
)
async def test_most_new_tokens(
    operation: Any, prompt_tokens: int, given: dict[str, Any], context: int, most: int
) -> None:
    """Of max_length, max_new_tokens and the model's context, the tightest holds."""
    engine = FakeEngine(token_length=prompt_tokens)
    engine.info = replace(engine.info, context_length=context)
    await operation.handle({"prompt": "x"} | given, fake_context(engine))
    assert engine.jobs[0][0].params.max_new_tokens == most


@pytest.mark.parametrize("operation", [generate, complete])
@pytest.mark.parametrize(
    ("prompt_tokens", "given"),
    [(100, {}), (101, {}), (30, {"max_length": 30}), (31, {"max_length": 30, "max_new_tokens": 5})],
)
async def test_max_length_without_room(operation: Any, prompt_tokens: int, given: dict[str, Any]) -> None:
    """A prompt as long as max_length is refused with what to do, and the engine is not asked."""
    engine = FakeEngine(token_length=prompt_tokens)
    with pytest.raises(InvalidRequest, match="raise it or give max_new_tokens") as caught:
        await operation.handle({"prompt": "x"} | given, fake_context(engine))
    assert caught.value.param == "max_length"
    assert engine.jobs == []


async def test_limits_are_per_prompt() -> None:
    """Prompts of one request may differ in length; each has its own room, and one that has none refuses all."""
    engine = FakeEngine(token_length=len)
    await complete.handle({"prompt": ["a" * 5, "a" * 20], "max_length": 30}, fake_context(engine))
    assert [job.params.max_new_tokens for job in engine.jobs[0]] == [25, 10]
    assert [len(job.token_ids) for job in engine.jobs[0]] == [5, 20]
    with pytest.raises(InvalidRequest, match="max_length"):
        await complete.handle({"prompt": ["a", "a" * 30], "max_length": 30}, fake_context(engine))


async def test_finish_reasons() -> None:
    """A text cut by its limit says so."""
    answer = await complete.handle({"prompt": "x", "max_new_tokens": 2}, fake_context())
    assert answer["sequences"] == [{"index": 0, "text": "Hello there", "finish_reason": "length"}]
    assert answer["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("operation", [generate, complete])
@pytest.mark.parametrize(
    ("payload", "limits", "param"),
    [
        ({"prompt": "four"}, RequestLimits(max_prompt_chars=3), "prompt"),
        ({"prompt": ["tw", "o!"]}, RequestLimits(max_prompt_chars=3), "prompt"),
        ({"prompt": ["a", "b", "c"]}, RequestLimits(max_sequences=2), "prompt"),
        ({"prompt": ["a", "b"], "num_return_sequences": 2}, RequestLimits(max_sequences=3), "num_return_sequences"),
    ],
)
async def test_limits(operation: Any, payload: dict[str, Any], limits: RequestLimits, param: str) -> None:
    """All prompts together count against the service's limits."""
    engine = FakeEngine()
    with pytest.raises(InvalidRequest) as caught:
        await operation.handle(payload, fake_context(engine, limits=limits))
    assert caught.value.param == param
    assert engine.jobs == []


async def test_one_job_per_prompt() -> None:
    """A batch goes to the engine at once: one job per prompt, each with its number of sequences."""
    engine = FakeEngine()
    await complete.handle({"prompt": ["a", "b", "c"], "num_return_sequences": 4, "seed": 1}, fake_context(engine))
    (jobs,) = engine.jobs
    assert [(job.params.n, job.params.seed) for job in jobs] == [(4, 1)] * 3
