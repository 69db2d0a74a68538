"""handlers.operations.completions: OpenAI's text completions, and what they tell of a prompt."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from handlers.context import RequestLimits
from handlers.operations import complete, completions
from handlers.schemas.responses import CompletionsResponse
from runtime.errors import ContextLengthExceeded, InvalidRequest, ServiceError
from runtime.types import Job, Token
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
        "system_fingerprint": None,
        "choices": [
            {"index": 0, "text": "Hello there.", "finish_reason": "stop", "logprobs": None, "stop_reason": None}
        ],
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


@pytest.mark.parametrize(
    ("fields", "limit"),
    [({"n_predict": 7}, 7), ({"n_predict": 7, "max_tokens": 5}, 5), ({"n_predict": -1}, 19)],
)
async def test_n_predict(fields: dict[str, Any], limit: int) -> None:
    """llama.cpp's name of max_tokens; -1 is up to the end of the context. Its fields without an effect are accepted."""
    engine = FakeEngine(info=replace(INFO, context_length=20))
    await completions.handle({"prompt": "x", "cache_prompt": False, "id_slot": 0} | fields, fake_context(engine))
    assert engine.jobs[0][0].params.max_new_tokens == limit


async def test_timings() -> None:
    """llama.cpp's member: counts, times and rates, in the whole answer and in each chunk."""
    times = itertools.count(100.0, 0.5)
    ctx = fake_context(FakeEngine(token_length=9, cached_tokens=8))
    ctx = replace(ctx, clock=replace(ctx.clock, monotonic=lambda: next(times)))
    payload = {"prompt": "x", "timings_per_token": True}
    answer = await completions.handle(payload, ctx)
    CompletionsResponse.model_validate(answer, extra="forbid", strict=True)
    assert answer["timings"] == {
        "cache_n": 8,
        "prompt_n": 1,
        "prompt_ms": 500.0,
        "prompt_per_token_ms": 500.0,
        "prompt_per_second": 2.0,
        "predicted_n": 3,
        "predicted_ms": 500.0,
        "predicted_per_token_ms": 500 / 3,
        "predicted_per_second": 6.0,
    }
    streamed = [chunk async for chunk in completions.stream(payload, ctx)]
    assert [chunk["timings"]["predicted_n"] for chunk in streamed] == [1, 2, 3]
    assert "timings" not in await completions.handle({"prompt": "x"}, ctx)


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
        ({"prompt": "x", "best_of": 2, "n": 3}, RequestLimits(), "best_of"),
        ({"prompt": "x", "best_of": 5}, RequestLimits(max_sequences=4), "best_of"),
        ({"prompt": "x", "logprobs": 21}, RequestLimits(), "logprobs"),
        ({"prompt": "x", "truncate_prompt_tokens": 0}, RequestLimits(), "truncate_prompt_tokens"),
        ({"prompt": "x", "request_id": "a b"}, RequestLimits(), "request_id"),
        ({"prompt": "x", "allowed_token_ids": [256]}, RequestLimits(), "allowed_token_ids"),
        ({"prompt": "x", "max_tokens": -1}, RequestLimits(), "max_tokens"),
        ({"prompt": [[1, "2"]]}, RequestLimits(), "prompt.0.1"),
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


# Token ids


@pytest.mark.parametrize(
    ("prompt", "jobs"),
    [([5, 6], [(5, 6)]), ([[5, 6], [7]], [(5, 6), (7,)]), ([[5], "ab"], [(5,), (0, 1)]), ([5.0], [(5,)])],
)
async def test_prompts_of_token_ids(prompt: Any, jobs: list[tuple[int, ...]]) -> None:
    """One prompt of ids, several, and texts among them; they reach the engine as they are."""
    engine = FakeEngine(token_length=len)
    answer = await completions.handle({"prompt": prompt, "max_tokens": 1}, fake_context(engine))
    assert [job.token_ids for job in engine.jobs[0]] == jobs
    assert len(answer["choices"]) == len(jobs)


@pytest.mark.parametrize("prompt", [[], [[]], [[1], []], [-1], [True], [1.5], [[1, "a"]], [1, "a"], {"a": 1}])
async def test_what_is_no_prompt(prompt: Any) -> None:
    """It is refused with the field's name."""
    with pytest.raises(InvalidRequest) as caught:
        await completions.handle({"prompt": prompt}, fake_context())
    assert str(caught.value.param).startswith("prompt")
    assert "ids" not in str(caught.value.param)


@pytest.mark.parametrize("fields", [{}, {"max_tokens": 0}, {"echo": True}])
async def test_an_id_that_the_model_lacks(fields: dict[str, Any]) -> None:
    """The error names field, id and vocabulary."""
    with pytest.raises(InvalidRequest, match=r"prompt: 256 is not a token id .* 256 tokens"):
        await completions.handle({"prompt": [0, 256], **fields}, fake_context())


async def test_scoring_by_token_ids() -> None:
    """As lm-evaluation-harness asks: an entry for each id of the prompt, the first without a value, and one more."""
    payload = {"prompt": [[0, 1, 2], [2, 1]], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    answer = await completions.handle(payload, fake_context())
    first, second = (choice["logprobs"] for choice in answer["choices"])
    assert first["tokens"] == ["Hello", " there", ".", "Hello"]
    assert first["token_logprobs"] == [None, -0.5, -0.75, -0.25]
    assert first["text_offset"] == [0, 5, 11, 12]
    assert first["top_logprobs"][1] == {"Hello": -0.25, " there": -0.5}
    assert second["token_logprobs"] == [None, -0.5, -0.25]
    assert answer["choices"][0]["text"] == "Hello there.Hello"


async def test_returned_token_ids() -> None:
    """The ids of prompt and completion, end token included; in a stream those of each piece."""
    payload = {"prompt": [7, 8], "return_token_ids": True}
    (choice,) = (await completions.handle(payload, fake_context()))["choices"]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([7, 8], [0, 1, 2])
    pieces = [chunk["choices"][0] for chunk in await chunks(payload, FakeEngine())]
    assert [piece.get("prompt_token_ids") for piece in pieces] == [[7, 8], None, None]
    assert [piece["token_ids"] for piece in pieces] == [[0], [1], [2]]


async def test_log_probabilities_of_a_prompt() -> None:
    """In vLLM's shape; the rank of a token that is not among the likeliest is null."""
    answer = await completions.handle({"prompt": [0, 2], "prompt_logprobs": 1}, fake_context())
    CompletionsResponse.model_validate(answer, extra="forbid", strict=True)
    assert answer["choices"][0]["prompt_logprobs"] == [
        None,
        {
            "0": {"logprob": -0.25, "rank": 1, "decoded_token": "Hello"},
            "2": {"logprob": -0.75, "rank": None, "decoded_token": "."},
        },
    ]
    with pytest.raises(InvalidRequest, match="prompt_logprobs: needs stream to be false"):
        await chunks({"prompt": "x", "prompt_logprobs": 0}, FakeEngine())


class Varied(FakeEngine):
    """The sequence number i of a prompt says the word number i, with the log-probability -3 / (i + 1), then ends."""

    async def stream(self, jobs: Sequence[Job]) -> AsyncGenerator[Token, None]:
        self.jobs.append(tuple(jobs))
        for row in range(sum(job.params.n for job in jobs)):
            number = row % jobs[0].params.n
            yield Token(row, number, f"word {number}", logprob=-3 / (number + 1))
            yield Token(row, 9, "", "stop", logprob=0.0)


@pytest.mark.parametrize(
    ("fields", "generated", "texts"),
    [
        ({"best_of": 1}, 1, ["word 0"]),
        ({"best_of": 3}, 3, ["word 2"]),
        ({"best_of": 3, "n": 2}, 3, ["word 2", "word 1"]),
        ({"best_of": 2, "n": 2}, 2, ["word 0", "word 1"]),
        ({"best_of": 1, "n": 2}, 2, ["word 0", "word 1"]),
        ({"best_of": 3, "prompt": ["x", "y"]}, 3, ["word 2", "word 2"]),
    ],
)
async def test_best_of(fields: dict[str, Any], generated: int, texts: list[str]) -> None:
    """So many are generated for each prompt, and the n with the highest mean log-probability come back, best first."""
    engine = Varied()
    answer = await completions.handle({"prompt": "x"} | fields, fake_context(engine))
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(enumerate(texts))
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert {job.params.n for job in engine.jobs[0]} == {generated}
    assert answer["usage"]["completion_tokens"] == 2 * generated * len(engine.jobs[0])


async def test_best_of_in_a_stream() -> None:
    """What is streamed cannot be ranked, so that best_of is refused unless it is n."""
    with pytest.raises(InvalidRequest, match="best_of: should be 1 or equal to n in a stream"):
        await chunks({"prompt": "x", "best_of": 2}, FakeEngine())


async def test_truncated_prompts() -> None:
    """Each prompt keeps so many tokens, texts and ids alike, and the echo has only these."""
    engine = Bytes(SPEAKING)
    fields = {"truncate_prompt_tokens": 2, "echo": True, "return_token_ids": True, "max_tokens": 3}
    answer = await completions.handle({"prompt": ["abc", [100, 101, 102]]} | fields, fake_context(engine))
    assert [choice["text"] for choice in answer["choices"]] == ["bcé!", "efé!"]
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [[98, 99], [101, 102]]
    right = await completions.handle({"prompt": "abc", "truncation_side": "right"} | fields, fake_context(engine))
    assert right["choices"][0]["text"] == "abé!"


async def test_prompts_without_special_tokens() -> None:
    """add_special_tokens false leaves out what the tokenizer adds."""
    engine = FakeEngine(token_length=4)
    await completions.handle({"prompt": "x", "add_special_tokens": False}, fake_context(engine))
    assert engine.jobs[0][0].token_ids == (0, 1, 2, 3)


async def test_stop_reason() -> None:
    """The stop string or stop token of the request that ended the text, in the last piece of a stream, too."""
    for fields, engine, reason in (
        ({"stop": "x"}, FakeEngine(stop_string="x"), "x"),
        ({"stop_token_ids": [2]}, FakeEngine(), 2),
        ({}, FakeEngine(), None),
    ):
        answer = await completions.handle({"prompt": "x"} | fields, fake_context(engine))
        assert answer["choices"][0]["stop_reason"] == reason
        *pieces, last = await chunks({"prompt": "x"} | fields, engine)
        assert last["choices"][0]["stop_reason"] == reason
        assert not any("stop_reason" in piece["choices"][0] for piece in pieces)


async def test_tokens_named_by_ids() -> None:
    """return_tokens_as_token_ids names all tokens by their ids, those of an echoed prompt, too."""
    fields = {"prompt": "ab", "logprobs": 1, "echo": True, "return_tokens_as_token_ids": True, "max_tokens": 1}
    answer = await completions.handle(fields, fake_context(Bytes(SPEAKING)))
    found = answer["choices"][0]["logprobs"]
    assert found["tokens"] == ["token_id:97", "token_id:98", "token_id:0"]
    assert found["top_logprobs"][2] == {"token_id:0": -0.25}


async def test_salted_responses_are_apart() -> None:
    """A cached response is for requests with the same cache salt only."""
    ctx = caching(fake_context(FakeEngine()))
    payload = {"prompt": "x", "temperature": 0}
    found = [
        (await completions.handle(payload | {"cache_salt": salt}, ctx))["usage"]["cache"]["status"]
        for salt in (None, "a", "b", "a")
    ]
    assert found == ["miss", "miss", "miss", "hit"]


async def test_usage_with_every_chunk() -> None:
    """The usage so far in each chunk, and the whole at the end."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = await chunks({"prompt": "x", "stream_options": options}, FakeEngine())
    assert [chunk["usage"]["completion_tokens"] for chunk in found] == [1, 2, 3, 3]
    found = await chunks({"prompt": "x", "stream_options": {"continuous_usage_stats": True}}, FakeEngine())
    assert not any("usage" in chunk for chunk in found)


async def test_sampling_defaults() -> None:
    """OpenAI's; where the model has its own they hold for what a request leaves out."""
    plain, own = FakeEngine(), FakeEngine(info=replace(INFO, sampling_defaults=(("temperature", 0.3), ("top_k", 20))))
    for engine in (plain, own):
        await completions.handle({"prompt": "x", "top_k": None}, fake_context(engine))
    found = [(params.temperature, params.top_p, params.top_k) for params in (e.jobs[0][0].params for e in (plain, own))]
    assert found == [(1.0, 1.0, 0), (0.3, 1.0, 20)]
    await completions.handle({"prompt": "x", "temperature": 1}, fake_context(own))
    assert own.jobs[1][0].params.temperature == 1.0
