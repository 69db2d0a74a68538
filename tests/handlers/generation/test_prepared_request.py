"""handlers.generation: what every generating operation shares."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from handlers.context import Context, RequestLimits
from handlers.generation.checks import (
    chat_messages,
    check_prompt_chars,
    check_sequences,
    encode_all,
    remaining_context,
    sampling_params,
)
from handlers.generation.collect import Collected
from handlers.generation.prepared_request import PreparedRequest, generating, start_charged
from handlers.operations import chat, complete, generate
from handlers.schemas.messages import ChatMessage
from handlers.schemas.requests import ChatRequest, GenerateRequest
from runtime.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelLoading,
    ModelNotFound,
    RateLimited,
    ServiceError,
    TooManyRequests,
)
from runtime.types import Job, Message, SamplingParams, Token, TokenUsage
from tests.support.fakes import FakeEngine, fake_context, until, usage

TEXT: dict[str, Any] = {"prompt": "x"}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
OPERATIONS = [
    pytest.param(generate, TEXT, id="generate"),
    pytest.param(complete, TEXT, id="complete"),
    pytest.param(chat, CHAT, id="chat"),
]


def _observed(engine: FakeEngine, **kwargs: Any) -> tuple[Context, list[TokenUsage]]:
    seen: list[TokenUsage] = []
    return replace(fake_context(engine, **kwargs), observe=seen.append), seen


def _request(engine: FakeEngine, n: int = 1, prompt: int = 1) -> PreparedRequest:
    return PreparedRequest(engine, (Job(tuple(range(prompt)), SamplingParams(max_new_tokens=10, n=n)),))


async def _collect(request: PreparedRequest, ctx: Context) -> Collected:
    async with generating(request, ctx) as (collected, tokens):
        async for _ in tokens:
            pass
    return collected


@pytest.mark.parametrize(
    ("texts", "limit", "fits"),
    [(["abc"], 3, True), (["abc"], 2, False), (["ab", "c"], 3, True), (["ab", "cd"], 3, False), ([], 1, True)],
)
def test_prompt_chars(texts: list[str], limit: int, fits: bool) -> None:
    """All texts together count, the limit itself is allowed, and a refusal names the setting."""
    ctx = fake_context(limits=RequestLimits(max_prompt_chars=limit))
    if fits:
        check_prompt_chars(texts, ctx, "prompt")
        return
    with pytest.raises(InvalidRequest, match=rf"limit of {limit} \(MAX_PROMPT_CHARS\)") as caught:
        check_prompt_chars(texts, ctx, "prompt")
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("prompts", "n", "says"),
    [
        (1, 4, None),
        (4, 1, None),
        (2, 2, None),
        (1, 5, "n: 1 x 5 sequences"),
        (3, 2, "n: 3 x 2 sequences"),
        (5, 1, "prompt: 5 sequences"),
        (5, 2, "prompt: 5 sequences"),
    ],
)
def test_sequences(prompts: int, n: int, says: str | None) -> None:
    """Prompts times sequences count, the limit itself is allowed, and a refusal names the setting and the field that
    is to be changed: the prompts where they alone are too many.
    """
    ctx = fake_context(limits=RequestLimits(max_sequences=4))
    if says is None:
        check_sequences(prompts, n, ctx, "n")
        return
    with pytest.raises(
        InvalidRequest, match=rf"^{says} exceed the limit of 4 per request \(MAX_SEQUENCES\)$"
    ) as caught:
        check_sequences(prompts, n, ctx, "n")
    assert caught.value.param == says.split(":")[0]


@pytest.mark.parametrize(("prompt", "context", "left"), [(0, 1, 1), (7, 8, 1), (8, 8, None), (9, 8, None), (1, 8, 7)])
def test_remaining_context(prompt: int, context: int, left: int | None) -> None:
    """A prompt must leave room for at least one token."""
    if left is not None:
        assert remaining_context(prompt, context, "prompt") == left
        return
    says = f"maximum context length is {context} tokens. .* {prompt + 1} tokens .{prompt} in the messages, 1 in"
    with pytest.raises(ContextLengthExceeded, match=says) as caught:
        remaining_context(prompt, context, "messages")
    assert (caught.value.code, caught.value.status, caught.value.param) == ("context_length_exceeded", 400, "messages")


def test_top_p_0_is_greedy() -> None:
    """No probability is left but the likeliest token's, so nothing is drawn; the smallest top_p above is kept."""
    greedy, other = (
        sampling_params(GenerateRequest(prompt="x", top_p=top_p), max_new_tokens=7, n=1)  # type: ignore[arg-type]
        for top_p in (0, 5e-324)
    )
    assert (greedy.temperature, other.temperature) == (0, 0.7)


async def test_texts_are_encoded_a_few_at_a_time() -> None:
    """Another request's text does not wait behind thousands."""
    under_way: list[int] = []

    class Counting(FakeEngine):
        busy = 0

        async def encode(self, text: str, *, background: bool = False) -> tuple[int, ...]:
            self.busy += 1
            under_way.append(self.busy)
            await asyncio.sleep(0)
            self.busy -= 1
            return (int(text),)

    texts = [str(i) for i in range(2048)]
    assert await encode_all(Counting(), texts, fake_context()) == [(i,) for i in range(2048)]
    assert max(under_way) == 16


def test_sampling_params_carry_every_field() -> None:
    """Every sampling field reaches the engine; the template's stop strings come after the request's own."""
    request = GenerateRequest(
        prompt="x",  # type: ignore[arg-type]
        temperature=0.25,
        top_k=3,
        top_p=0.5,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0.75,
        logit_bias={"5": 1, "4": -1},  # type: ignore[dict-item]
        stop=["a"],
        seed=9,
    )
    given = sampling_params(request, max_new_tokens=7, n=2, min_new_tokens=3, logprobs=4, stop=("b",))
    assert given == SamplingParams(
        max_new_tokens=7,
        temperature=0.25,
        top_k=3,
        top_p=0.5,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0.75,
        logit_bias=((5, 1.0), (4, -1.0)),
        min_new_tokens=3,
        logprobs=4,
        stop=("a", "b"),
        seed=9,
        n=2,
    )
    assert sampling_params(GenerateRequest(prompt="x"), max_new_tokens=1, n=1).stop == ()  # type: ignore[arg-type]


def test_sampling_params_of_a_chat() -> None:
    """A chat request is read the same way."""
    request = ChatRequest.model_validate(CHAT | {"temperature": 0, "seed": -1, "stop": "s"})
    assert sampling_params(request, max_new_tokens=1, n=1) == SamplingParams(
        1, temperature=0, top_p=1.0, top_k=0, stop=("s",), seed=-1
    )


def test_collected() -> None:
    """Tokens become texts, reasons and OpenAI's usage, each sequence its own."""
    collected = Collected(prompt_tokens=5, sequences=2)
    for token in [
        Token(1, 0, "b"),
        Token(0, 0, "a"),
        Token(1, 0, ""),
        Token(1, 0, "B", "stop"),
        Token(0, 0, "", "length"),
    ]:
        collected.add(token)
    assert collected.texts == ["a", "bB"]
    assert collected.reasons == ["length", "stop"]
    assert collected.usage == TokenUsage(5, 5)


def test_collected_logprobs() -> None:
    """Tokens that have one are given out once, by sequence and in order; those that have none never."""
    collected = Collected(prompt_tokens=1, sequences=2)
    tokens = [Token(i % 2, i, "", logprob=-1.0) for i in range(4)]
    for token in [*tokens, Token(0, 9, "")]:
        collected.add(token)
    assert collected.take(0) == [tokens[0], tokens[2]]
    assert collected.take(0) == []
    assert collected.take(1) == [tokens[1], tokens[3]]
    collected.add(tokens[0])
    assert collected.take(0) == [tokens[0]]


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_cached_tokens(operation: Any, payload: dict[str, Any]) -> None:
    """The usage tells how many of the prompt's tokens were cached: once a prompt, not once a sequence."""
    many = {"n": 3} if operation is chat else {"num_return_sequences": 3}
    answer = await operation.handle(payload | many, fake_context(FakeEngine(token_length=9, cached_tokens=5)))
    assert answer["usage"] | usage(9, 9, cached_tokens=5) == answer["usage"]


async def test_cached_tokens_of_several_prompts() -> None:
    """Those of all prompts are added up, as the prompt tokens are."""
    engine = FakeEngine(token_length=9, cached_tokens=5)
    answer = await complete.handle({"prompt": ["a", "b"]}, fake_context(engine))
    assert answer["usage"] == usage(18, 6, cached_tokens=10)


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_logit_bias_knows_the_vocabulary(operation: Any, payload: dict[str, Any]) -> None:
    """The last token can be biased; the next id is refused by the field's name."""
    engine = FakeEngine()
    await operation.handle(payload | {"logit_bias": {"255": 1}}, fake_context(engine))
    assert engine.jobs[0][0].params.logit_bias == ((255, 1.0),)
    with pytest.raises(InvalidRequest, match=r"logit_bias: 256 is not a token id .* 256 tokens") as caught:
        await operation.handle(payload | {"logit_bias": {"3": 1, "256": 1}}, fake_context(engine))
    assert caught.value.param == "logit_bias"
    assert len(engine.jobs) == 1


@pytest.mark.parametrize(
    ("operation", "payload", "context", "most"),
    [
        pytest.param(generate, TEXT | {"max_new_tokens": 4}, 1000, 4, id="max_new_tokens"),
        pytest.param(complete, TEXT | {"max_length": 10}, 1000, 9, id="max_length"),
        pytest.param(complete, TEXT, 1000, 99, id="max_length's default"),
        pytest.param(complete, TEXT | {"max_new_tokens": 50}, 8, 7, id="the context"),
        pytest.param(chat, CHAT | {"max_tokens": 4}, 1000, 4, id="max_tokens"),
        pytest.param(chat, CHAT | {"max_tokens": 9, "max_completion_tokens": 5}, 1000, 5, id="max_completion_tokens"),
        pytest.param(chat, CHAT, 1000, 999, id="the default of a chat"),
        pytest.param(chat, CHAT, 8, 7, id="the context of a chat"),
    ],
)
async def test_least_new_tokens(operation: Any, payload: dict[str, Any], context: int, most: int) -> None:
    """As many as there may be can be asked for at least; one more is refused with both numbers."""
    engine = FakeEngine(info=replace(FakeEngine().info, context_length=context))
    field = "min_tokens" if operation is chat else "min_new_tokens"
    await operation.handle(payload | {field: most}, fake_context(engine))
    params = engine.jobs[0][0].params
    assert (params.min_new_tokens, params.max_new_tokens) == (most, most)
    with pytest.raises(InvalidRequest, match=f"^{field}: {most + 1} exceeds {most}, the limit set by") as caught:
        await operation.handle(payload | {field: most + 1}, fake_context(engine))
    assert caught.value.param == field
    assert len(engine.jobs) == 1


def test_messages() -> None:
    """developer is system; text parts are joined; everything else stays as it is, in order."""
    parts: list[Any] = [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
    turns = [("developer", "a"), ("user", parts), ("assistant", "d"), ("system", "e"), ("user", [])]
    assert chat_messages(ChatMessage(role=role, content=content) for role, content in turns) == (
        Message("system", "a"),
        Message("user", "bc"),
        Message("assistant", "d"),
        Message("system", "e"),
        Message("user", ""),
    )


async def test_prompts_are_encoded_in_order() -> None:
    """However long each takes, token ids come back in the order of the prompts."""

    class Slow(FakeEngine):
        async def encode(self, text: str, *, background: bool = False) -> tuple[int, ...]:
            await asyncio.sleep(0.02 if text == "long" else 0)
            return (len(text),)

    assert await encode_all(Slow(), ["long", "s", ""], fake_context()) == [(4,), (1,), (0,)]


async def test_run_reports_usage_once() -> None:
    """A whole generation is reported once, when it ends."""
    engine = FakeEngine()
    ctx, seen = _observed(engine)
    collected = await _collect(_request(engine, n=2, prompt=4), ctx)
    assert collected.texts == ["Hello there."] * 2
    assert seen == [TokenUsage(4, 6)]
    assert engine.open_streams == 0


async def test_leaving_early_frees_the_engine_at_once() -> None:
    """Leaving the block closes the engine's stream before the next line runs, and reports what was generated."""
    engine = FakeEngine()
    ctx, seen = _observed(engine)
    async with generating(_request(engine), ctx) as (_, tokens):
        async for _ in tokens:
            break
        assert engine.open_streams == 1
    assert engine.open_streams == 0
    assert seen == [TokenUsage(1, 1)]


async def test_never_reading_frees_the_engine() -> None:
    """So does a block that reads no token at all."""
    engine = FakeEngine()
    ctx, seen = _observed(engine)
    async with generating(_request(engine), ctx):
        pass
    assert engine.open_streams == 0
    assert seen == [TokenUsage(1, 0)]


async def test_failing_engine_is_freed_and_reported() -> None:
    """The engine's error comes through as it is; what was generated before it still counts."""
    engine = FakeEngine(fail_after=2, failure=TooManyRequests("full", retry_after=1))
    ctx, seen = _observed(engine)
    with pytest.raises(TooManyRequests, match="full"):
        await _collect(_request(engine), ctx)
    assert engine.open_streams == 0
    assert seen == [TokenUsage(1, 2)]


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_cancelling_frees_the_engine(operation: Any, payload: dict[str, Any]) -> None:
    """A cancelled call frees the engine before the cancellation is over, and still reports its usage."""
    engine = FakeEngine(words=("a",) * 1000, pause=0.005)
    ctx, seen = _observed(engine)
    call = asyncio.create_task(operation.handle(payload, ctx))
    await until(lambda: engine.generated > 3)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert engine.open_streams == 0
    assert len(seen) == 1
    assert 0 < seen[0].completion_tokens < 1000


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_closing_a_stream_early_frees_the_engine(operation: Any, payload: dict[str, Any]) -> None:
    """A reader who closes a stream after one event frees the engine at once; the usage so far is reported."""
    engine = FakeEngine()
    ctx, seen = _observed(engine)
    events: AsyncGenerator[dict[str, Any], None] = operation.stream(payload, ctx)
    await anext(events)
    assert engine.open_streams == 1
    await events.aclose()
    assert engine.open_streams == 0
    assert seen == [TokenUsage(1, 1)]


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_streams_report_usage_when_they_end(operation: Any, payload: dict[str, Any]) -> None:
    """A stream read to its end is reported once, with what a whole answer would say."""
    engine = FakeEngine()
    ctx, seen = _observed(engine)
    whole = await operation.handle(payload, ctx)
    async for _ in operation.stream(payload, ctx):
        pass
    assert [usage.openai() | whole["usage"] for usage in seen] == [whole["usage"]] * 2
    assert {usage.completion_tokens for usage in seen} == {whole["usage"]["completion_tokens"]}
    assert engine.open_streams == 0


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_unread_stream_starts_nothing(operation: Any, payload: dict[str, Any]) -> None:
    """A stream that nobody reads asks nothing of the engine."""
    engine = FakeEngine()
    ctx, seen = _observed(engine)
    events = operation.stream(payload, ctx)
    await events.aclose()
    assert (engine.jobs, seen) == ([], [])


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
@pytest.mark.parametrize(
    ("extra", "models", "error"),
    [
        ({"model": "other"}, {}, ModelNotFound),
        ({}, {"failure": ModelLoading("still loading", retry_after=5)}, ModelLoading),
    ],
)
async def test_model_errors_come_through(
    operation: Any, payload: dict[str, Any], extra: dict[str, Any], models: dict[str, Any], error: type[Exception]
) -> None:
    """An unknown model, or one that is loading, is the caller's to know, whole or streamed."""
    with pytest.raises(error):
        await operation.handle(payload | extra, fake_context(**models))
    with pytest.raises(error):
        await anext(operation.stream(payload | extra, fake_context(**models)))


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_model_by_name(operation: Any, payload: dict[str, Any]) -> None:
    """The model can be named, and the answer names it."""
    assert (await operation.handle(payload | {"model": "fake"}, fake_context()))["model"] == "fake"


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
@pytest.mark.parametrize("length", [8, 9, 1000])
async def test_prompt_that_cannot_fit(operation: Any, payload: dict[str, Any], length: int) -> None:
    """A prompt that leaves no room in the context is refused before the engine hears of it."""
    engine = _small(FakeEngine(token_length=length))
    with pytest.raises(ContextLengthExceeded):
        await operation.handle(payload, fake_context(engine))
    with pytest.raises(ContextLengthExceeded):
        await anext(operation.stream(payload, fake_context(engine)))
    assert engine.jobs == []


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_context_bounds_the_answer(operation: Any, payload: dict[str, Any]) -> None:
    """A prompt that fits gets as many tokens as the context still holds."""
    engine = _small(FakeEngine(token_length=6))
    answer = await operation.handle(payload, fake_context(engine))
    assert engine.jobs[0][0].params.max_new_tokens == 2
    assert answer["usage"]["completion_tokens"] == 2


@dataclass
class Limiter:
    """Records the numbers of tokens that were reserved and committed."""

    reserved: list[int] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)

    async def reserve(self, max_tokens: int) -> Callable[[int], Awaitable[None]]:
        self.reserved.append(max_tokens)

        async def commit(used: int) -> None:
            self.committed.append(used)

        return commit


@pytest.mark.parametrize(
    ("engine", "reads", "used"),
    [
        (FakeEngine(), 100, 5 + 2 * 3),
        (FakeEngine(), 4, 5 + 4),
        (FakeEngine(), 0, 0),
        (FakeEngine(fail_after=0), 100, 0),
        (FakeEngine(fail_after=2), 100, 5 + 2),
        (FakeEngine(fail_after=2, failure=RuntimeError("planted")), 100, 5 + 2),
    ],
    ids=["to the end", "a few", "never", "refused", "error", "bug"],
)
async def test_usage_is_committed_once(engine: FakeEngine, reads: int, used: int) -> None:
    """Prompts and generated tokens are committed however the stream ends, and nothing if it fails before a token."""
    limiter = Limiter()
    request = PreparedRequest(engine, (Job((0,) * 5, SamplingParams(max_new_tokens=10, n=2)),))
    with suppress(ServiceError, RuntimeError):
        async with start_charged(request, replace(fake_context(), reserve=limiter.reserve)) as tokens:
            assert (limiter.reserved, limiter.committed, engine.jobs) == ([5 + 2 * 10], [], [])
            for _ in range(reads):
                await anext(aiter(tokens), None)
    assert limiter.committed == [used]
    assert engine.open_streams == 0


async def test_a_refused_reservation_starts_nothing() -> None:
    """A refused reservation is raised as it is, and the engine is not asked."""

    async def refuse(max_tokens: int) -> Callable[[int], Awaitable[None]]:
        raise RateLimited("planted")

    engine = FakeEngine()
    with pytest.raises(RateLimited, match="planted"):
        async with start_charged(_request(engine), replace(fake_context(), reserve=refuse)):
            pass
    assert engine.jobs == []


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_sampling_reaches_the_engine(operation: Any, payload: dict[str, Any]) -> None:
    """Stop strings, seed and all other sampling fields reach the engine whichever the operation."""
    engine = FakeEngine()
    given = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 4,
        "min_p": 0.5,
        "repetition_penalty": 2,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "logit_bias": {"3": 1.5},
        "stop": ["a", "b"],
        "seed": 7,
    }
    await operation.handle(payload | given, fake_context(engine))
    params = engine.jobs[0][0].params
    expected = given | {"stop": ("a", "b"), "logit_bias": ((3, 1.5),)}
    assert {name: getattr(params, name) for name in given} == expected


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_limits_are_checked_before_the_model(operation: Any, payload: dict[str, Any]) -> None:
    """Too much text or too many sequences are refused before a model is loaded for them."""
    ctx = fake_context(limits=RequestLimits(max_prompt_chars=0), failure=AssertionError("asked for the model"))
    with pytest.raises(InvalidRequest, match="MAX_PROMPT_CHARS"):
        await operation.handle(payload, ctx)
    ctx = fake_context(limits=RequestLimits(max_sequences=1), failure=AssertionError("asked for the model"))
    many = {"n": 2} if operation is chat else {"num_return_sequences": 2}
    with pytest.raises(InvalidRequest, match="MAX_SEQUENCES") as caught:
        await operation.handle(payload | many, ctx)
    assert caught.value.param == next(iter(many))


async def test_concurrent_requests_do_not_mix() -> None:
    """Many requests at once each get their own answer."""

    class Echo(FakeEngine):
        async def encode(self, text: str, *, background: bool = False) -> tuple[int, ...]:
            return tuple(text.encode())

        async def stream(self, jobs: Sequence[Job]) -> AsyncGenerator[Token, None]:
            for row, job in enumerate(jobs):
                for i, number in enumerate(job.token_ids):
                    await asyncio.sleep(0)
                    yield Token(row, number, chr(number), "stop" if i == len(job.token_ids) - 1 else None)

    ctx = fake_context(Echo())
    prompts = [f"prompt {i}" for i in range(50)]
    answers = await asyncio.gather(*(complete.handle({"prompt": prompt}, ctx) for prompt in prompts))
    assert [answer["text"] for answer in answers] == prompts


def _small(engine: FakeEngine) -> FakeEngine:
    engine.info = replace(engine.info, context_length=8)
    return engine
