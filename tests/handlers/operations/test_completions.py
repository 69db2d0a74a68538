"""handlers.operations.completions: OpenAI's text completions, and what they tell of a prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from handlers.context import RequestLimits
from handlers.operations import complete, completions
from handlers.schemas.responses import CompletionsResponse
from runtime.errors import ContextLengthExceeded, InvalidRequest, ServiceError
from tests.support.fakes import INFO, FakeEngine, caching, fake_context, usage


class Bytes(FakeEngine):
    """A token per byte of a text; it says "é!" in three tokens, of which two are one character."""

    async def encode(self, text: str, *, background: bool = False) -> tuple[int, ...]:
        return tuple(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id > 2 else ("é!".encode()[token_id : token_id + 1])


SPEAKING = ("", "é", "!")


async def chunks(payload: dict[str, Any], engine: FakeEngine) -> list[dict[str, Any]]:
    found = [event async for event in completions.stream(payload, fake_context(engine))]
    for chunk in found:
        CompletionsResponse.model_validate(chunk, extra="forbid", strict=True)
    return found


async def test_answer() -> None:
    """The whole answer, in OpenAI's shape."""
    answer = await completions.handle({"prompt": "Say:"}, fake_context(FakeEngine(token_length=4)))
    assert answer == {
        "id": "cmpl-id1",
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "fake",
        "choices": [{"index": 0, "text": "Hello there.", "finish_reason": "stop", "logprobs": None}],
        "usage": usage(4, 3),
    }
    CompletionsResponse.model_validate(answer, extra="forbid", strict=True)


@pytest.mark.parametrize(("given", "most"), [({}, 16), ({"max_tokens": None}, 16), ({"max_tokens": 5}, 5)])
async def test_most_new_tokens(given: dict[str, Any], most: int) -> None:
    """Sixteen, as OpenAI has it, unless something else is asked; or what the context leaves room for."""
    engine = FakeEngine()
    await completions.handle({"prompt": "x"} | given, fake_context(engine))
    assert engine.jobs[0][0].params.max_new_tokens == most
    tight = FakeEngine(token_length=8, info=replace(INFO, context_length=10))
    await completions.handle({"prompt": "x"} | given, fake_context(tight))
    assert tight.jobs[0][0].params.max_new_tokens == 2


async def test_fields_reach_the_model() -> None:
    """OpenAI's fields and ours shape the tokens; a batch goes to the engine at once."""
    engine = FakeEngine()
    payload = {
        "prompt": ["a", "b"],
        "n": 2,
        "best_of": 1,
        "suffix": None,
        "user": "me",
        "stop": "x",
        "seed": 7,
        "top_k": 3,
        "min_p": 0.5,
        "min_tokens": 2,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "logit_bias": {"7": -100},
        "logprobs": 0,
    }
    answer = await completions.handle(payload, fake_context(engine))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    (jobs,) = engine.jobs
    for job in jobs:
        params = job.params
        assert (params.n, params.stop, params.seed, params.top_k, params.min_p) == (2, ("x",), 7, 3, 0.5)
        assert (params.min_new_tokens, params.logprobs, params.logit_bias) == (2, 0, ((7, -100.0),))
        assert (params.presence_penalty, params.frequency_penalty) == (1, -1)


@pytest.mark.parametrize("echo", [False, True])
async def test_echo(echo: bool) -> None:
    """echo puts the prompt before each of its completions, whole and streamed."""
    payload = {"prompt": ["A", "B"], "n": 2, "echo": echo}
    wanted = [f"{prefix}Hello there." for prefix in (("A", "A", "B", "B") if echo else ("",) * 4)]
    answer = await completions.handle(payload, fake_context())
    assert [choice["text"] for choice in answer["choices"]] == wanted
    texts = [""] * 4
    for chunk in await chunks(payload, FakeEngine()):
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == wanted


async def test_logprobs() -> None:
    """Four lists of one length: tokens, log-probabilities, the likeliest with the chosen one, and where each begins."""
    answer = await completions.handle({"prompt": "x", "logprobs": 1}, fake_context(FakeEngine()))
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["Hello", " there", "."],
        "token_logprobs": [-0.25, -0.5, -0.75],
        "top_logprobs": [{"Hello": -0.25}, {"Hello": -0.25, " there": -0.5}, {"Hello": -0.25, ".": -0.75}],
        "text_offset": [0, 5, 11],
    }


async def test_logprobs_of_an_echoed_prompt() -> None:
    """The prompt's tokens come first, the very first without a number; offsets count characters of the whole text."""
    payload = {"prompt": "aß", "echo": True, "logprobs": 0, "max_tokens": 3}
    engine = Bytes(SPEAKING)
    answer = await completions.handle(payload, fake_context(engine))
    (choice,) = answer["choices"]
    assert choice["text"] == "aßé!"
    found = choice["logprobs"]
    assert found["tokens"] == ["a", "bytes:\\xc3", "bytes:\\x9f", "bytes:\\xc3", "bytes:\\xa9", "!"]
    prompt = "aß".encode()
    assert found["token_logprobs"] == [None, *(-(byte + 1) / 4 for byte in prompt[1:]), -0.25, -0.5, -0.75]
    assert found["top_logprobs"][0] is None
    assert found["top_logprobs"][-1] == {"!": -0.75}
    assert found["text_offset"] == [0, 1, 2, 2, 3, 3]
    assert answer["usage"] == usage(3, 3)
    generating, scoring = sorted((jobs[0] for jobs in engine.jobs), key=lambda job: bool(job.params.forced))
    assert generating.token_ids == tuple(prompt)
    assert (scoring.token_ids, scoring.params.forced) == (tuple(prompt[:1]), tuple(prompt[1:]))


async def test_offsets_where_tokens_are_not_written() -> None:
    """What a tokenizer adds to a text, and a blank that it puts before the first word, has no place in the text."""

    class Adding(FakeEngine):
        async def encode(self, text: str, *, background: bool = False) -> tuple[int, ...]:
            return (0, 1, 2)

    engine = Adding(("<s>", " Hello", " you"))
    payload = {"prompt": "Hello you", "echo": True, "logprobs": 0, "max_tokens": 0}
    (choice,) = (await completions.handle(payload, fake_context(engine)))["choices"]
    assert choice["logprobs"]["tokens"] == ["<s>", " Hello", " you"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 5]


async def test_a_prompt_alone() -> None:
    """With max_tokens 0 nothing is generated: with echo and logprobs that tells how likely the prompt is."""
    engine = Bytes(SPEAKING)
    payload = {"prompt": ["ab", "c"], "n": 2, "max_tokens": 0, "echo": True, "logprobs": 1}
    answer = await completions.handle(payload, fake_context(engine))
    assert [choice["text"] for choice in answer["choices"]] == ["ab", "ab", "c", "c"]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert [choice["logprobs"]["token_logprobs"] for choice in answer["choices"]] == [[None, -24.75]] * 2 + [[None]] * 2
    assert answer["usage"] == usage(3, 0)
    assert [jobs[0].params.forced for jobs in engine.jobs] == [(ord("b"),)]
    silent = await completions.handle({"prompt": "x", "max_tokens": 0}, fake_context(engine))
    assert (silent["choices"][0]["text"], len(engine.jobs)) == ("", 1)


@pytest.mark.parametrize("tokens", [0, 3])
async def test_stream_is_the_answer_in_pieces(tokens: int) -> None:
    """Joined, the chunks are the whole answer, log-probabilities and all; the usage comes last if asked for."""
    payload = {"prompt": ["aß", "c"], "n": 2, "max_tokens": tokens, "echo": True, "logprobs": 2}
    whole = await completions.handle(payload, fake_context(Bytes(SPEAKING)))
    *pieces, last = await chunks(payload | {"stream_options": {"include_usage": True}}, Bytes(SPEAKING))
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    joined: list[dict[str, Any]] = [{"text": "", "logprobs": {}} for _ in whole["choices"]]
    for piece in pieces:
        assert piece["usage"] is None
        (choice,) = piece["choices"]
        mine = joined[choice["index"]]
        mine["text"] += choice["text"]
        for name, values in choice["logprobs"].items():
            mine["logprobs"].setdefault(name, []).extend(values)
        mine["finish_reason"] = choice["finish_reason"]
    assert joined == [{name: choice[name] for name in joined[0]} for choice in whole["choices"]]


async def test_kept_answers() -> None:
    """A greedy completion is answered from the response cache, whole and streamed, and is the one that complete gives;
    a prompt alone is not generated, and not kept.
    """
    engine = Bytes(SPEAKING)
    ctx = caching(fake_context(engine))
    payload = {"prompt": "x", "temperature": 0, "max_tokens": 3, "logprobs": 1}
    first = await completions.handle(payload, ctx)
    again = await completions.handle(payload, ctx)
    *pieces, last = [
        chunk async for chunk in completions.stream(payload | {"stream_options": {"include_usage": True}}, ctx)
    ]
    same = await complete.handle({"prompt": "x", "temperature": 0, "max_new_tokens": 3, "logprobs": 1}, ctx)
    assert len(engine.jobs) == 1
    assert again["choices"] == first["choices"]
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == same["text"] == first["choices"][0]["text"]
    found = [answer["usage"]["cache"]["status"] for answer in (first, again, last, same)]
    assert found == ["miss", "hit", "hit", "hit"]
    alone = await completions.handle(payload | {"max_tokens": 0}, ctx)
    assert "cache" not in alone["usage"]


@pytest.mark.parametrize(
    ("payload", "limits", "param"),
    [
        ({"prompt": "x", "suffix": "y"}, RequestLimits(), "suffix"),
        ({"prompt": "x", "best_of": 2}, RequestLimits(), "best_of"),
        ({"prompt": "x", "logprobs": 6}, RequestLimits(), "logprobs"),
        ({"prompt": "x", "max_tokens": -1}, RequestLimits(), "max_tokens"),
        ({"prompt": [[1, 2]]}, RequestLimits(), "prompt.0"),
        ({"prompt": "x", "min_tokens": 17}, RequestLimits(), "min_tokens"),
        ({"prompt": "x", "min_tokens": 1, "max_tokens": 0}, RequestLimits(), "min_tokens"),
        ({"prompt": "four"}, RequestLimits(max_prompt_chars=3), "prompt"),
        ({"prompt": ["a", "b"], "n": 2}, RequestLimits(max_sequences=3), "n"),
        ({"prompt": "x", "logit_bias": {"256": 1}}, RequestLimits(), "logit_bias"),
    ],
)
async def test_wrong_requests(payload: dict[str, Any], limits: RequestLimits, param: str) -> None:
    """What is wrong or not supported is named, and the engine is not asked."""
    engine = FakeEngine()
    with pytest.raises(InvalidRequest) as caught:
        await completions.handle(payload, fake_context(engine, limits=limits))
    assert caught.value.param == param
    assert engine.jobs == []


async def test_a_prompt_that_does_not_fit() -> None:
    """A prompt that leaves no room is refused as such."""
    engine = FakeEngine(token_length=8, info=replace(INFO, context_length=8))
    with pytest.raises(ContextLengthExceeded) as caught:
        await completions.handle({"prompt": "x"}, fake_context(engine))
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("tokens", [0, 4])
async def test_a_failure_to_score_is_the_request_s(tokens: int) -> None:
    """Where the prompt cannot be scored the request fails, and nothing is left running."""
    engine = Bytes(SPEAKING, fail_after=0)
    with pytest.raises(ServiceError, match="planted"):
        await completions.handle(
            {"prompt": "ab", "echo": True, "logprobs": 0, "max_tokens": tokens}, fake_context(engine)
        )
    assert engine.open_streams == 0
