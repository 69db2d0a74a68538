"""handlers.generation.answer: which requests share an answer, and that a kept answer is the answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.context import Commit, Context, reserve_unlimited
from handlers.operations import chat, complete, completions, generate
from handlers.schemas.requests import ChatRequest, CompleteRequest, GenerateRequest
from runtime.errors import InvalidRequest, RateLimited, TooManyRequests
from runtime.types import ModelInfo, TokenUsage
from tests.support.fakes import INFO, FakeEngine, caching, fake_context, until

TEXT: dict[str, Any] = {"prompt": ["x", "y"], "num_return_sequences": 2, "temperature": 0}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "n": 2, "temperature": 0}
OPERATIONS = [
    pytest.param(generate, TEXT, id="generate"),
    pytest.param(complete, TEXT | {"echo": True}, id="complete"),
    pytest.param(chat, CHAT, id="chat"),
]
REQUESTS: dict[Any, Any] = {generate: GenerateRequest, complete: CompleteRequest, chat: ChatRequest}


async def _key(operation: Any, payload: dict[str, Any], info: ModelInfo = INFO, caller: str = "") -> str | None:
    """What an answer is kept under, as the usage tells it; None for one that is not kept."""
    ctx = caching(replace(fake_context(FakeEngine(info=info)), caller=lambda: caller))
    key: str | None = (await operation.handle(payload, ctx))["usage"]["cache"]["key"]
    return key


def _keys(operation: Any, *payloads: dict[str, Any]) -> list[str | None]:
    async def all_() -> list[str | None]:
        return [await _key(operation, payload) for payload in payloads]

    return asyncio.run(all_())


# Fields that decide an answer, each with values that all differ in what they ask.
_SAMPLING: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0.1, 0.5, 2]),
    "top_p": st.sampled_from([0.1, 0.9, 1]),
    "top_k": st.sampled_from([0, 1, 50]),
    "min_p": st.sampled_from([0, 0.5]),
    "repetition_penalty": st.sampled_from([1, 1.5]),
    "presence_penalty": st.sampled_from([-2, 0, 1]),
    "frequency_penalty": st.sampled_from([-2, 0, 1]),
    "logit_bias": st.sampled_from([None, {"1": 1}, {"1": 2}, {"2": 1}, {"1": 1, "2": 1}]),
    "stop": st.sampled_from([None, ["a"], ["b"], ["a", "b"], ["ab"], ["é"]]),
    "seed": st.sampled_from([0, 1, -1, 2**63 - 1]),
    "guided_regex": st.sampled_from([None, "a", "b"]),
}
_MATTERS: dict[Any, dict[str, st.SearchStrategy[Any]]] = {
    complete: _SAMPLING
    | {
        "prompt": st.sampled_from(
            [["a"], ["b"], [1], [[1], [2]], ["1"], ["a", "b"], ["b", "a"], ["ab"], ["a,b"], ["é😀"]]
        ),
        "max_new_tokens": st.sampled_from([None, 10, 11]),
        "min_new_tokens": st.sampled_from([0, 1, 2]),
        "num_return_sequences": st.sampled_from([1, 2]),
        "logprobs": st.sampled_from([None, 0, 1]),
    },
    chat: _SAMPLING
    | {
        "messages": st.sampled_from(
            [
                [{"role": "user", "content": "a"}],
                [{"role": "assistant", "content": "a"}],
                [{"role": "system", "content": "a"}],
                [{"role": "user", "content": "b"}],
                [{"role": "user", "content": ""}],
                [{"role": "user", "content": "a"}, {"role": "user", "content": "a"}],
                [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}],
            ]
        ),
        "max_tokens": st.sampled_from([10, 11, 512]),
        "add_generation_prompt": st.sampled_from([None, False]),
        "chat_template_kwargs": st.sampled_from([None, {"a": 1}, {"a": "1"}]),
        "min_tokens": st.sampled_from([0, 1, 2]),
        "n": st.sampled_from([1, 2]),
        "logprobs": st.sampled_from([False, True]),
    },
}
_BASE: dict[Any, dict[str, Any]] = {
    complete: {"prompt": ["a"], "temperature": 0.5, "seed": 0},
    chat: {"messages": [{"role": "user", "content": "a"}], "temperature": 0.5, "seed": 0, "max_tokens": 10},
}
# What decides nothing: of each field, some values that all mean the same.
_SAME: dict[Any, dict[str, list[Any]]] = {
    complete: {
        "model": ["fake"],
        "stream": [False],
        "echo": [False, True],
        "cache_control": [None, "max-age=5", "unknown"],
        "temperature": [0.5, "0.5"],
        "presence_penalty": [0, 0.0, -0.0, "0"],
        "stop": [None],
        "logit_bias": [None, {}],
        "num_return_sequences": [1],
        "prompt": ["a", ["a"]],
        "top_k": [50],
        "max_length": [100],
    },
    chat: {
        "model": ["fake"],
        "tools": [None, []],
        "response_format": [None, {"type": "text"}],
        "metadata": [None, {"job": "1"}],
        "n": [None, 1],
        "user": [None, "ann", "bob"],
        "cache_control": [None, "max-age=5", "unknown"],
        "temperature": [0.5, "0.5"],
        "top_p": [None, 1, 1.0],
        "messages": [
            [{"role": "user", "content": "a"}],
            [{"role": "user", "content": "a", "name": "ann"}],
            [{"role": "user", "content": [{"type": "text", "text": "a"}], "tool_calls": None}],
            [{"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "a"}]}],
        ],
        "max_completion_tokens": [None, 10, 99],
        "add_generation_prompt": [None, True],
        "chat_template_kwargs": [None, {}],
        "logprobs": [None, False],
        "min_tokens": [0],
    },
}


@pytest.mark.parametrize("operation", [complete, chat])
@given(data=st.data())
def test_different_questions(operation: Any, data: st.DataObject) -> None:
    """Two requests that differ in any field that decides the answer have different keys."""
    fields = _MATTERS[operation]
    one = _BASE[operation] | data.draw(st.fixed_dictionaries({}, optional=fields))
    other = one | data.draw(st.fixed_dictionaries({}, optional=fields))
    one, other = ({k: v for k, v in payload.items() if k != "max_length"} for payload in (one, other))
    defaults = {name: REQUESTS[operation].model_fields[name].default for name in fields}
    same = defaults | one == defaults | other
    first, second = _keys(operation, one, other)
    assert first is not None
    assert (first == second) is same


@pytest.mark.parametrize("operation", [complete, chat])
@given(data=st.data())
def test_same_question(operation: Any, data: st.DataObject) -> None:
    """Requests that differ only in how they are written, or in what decides nothing, have one key."""
    fields = {name: st.sampled_from(values) for name, values in _SAME[operation].items()}
    other = _BASE[operation] | data.draw(st.fixed_dictionaries({}, optional=fields))
    first, second = _keys(operation, _BASE[operation], other)
    assert first == second is not None


@pytest.mark.parametrize("operation", [complete, chat])
@given(data=st.data())
def test_greedy_question(operation: Any, data: st.DataObject) -> None:
    """Where nothing is drawn, neither a seed nor what shapes the draw makes another question; penalties do."""
    base = _BASE[operation] | {"temperature": 0, "seed": None}
    idle = {name: _SAMPLING[name] for name in ("seed", "top_k", "top_p", "min_p")}
    other = base | data.draw(st.fixed_dictionaries({}, optional=idle))
    first, second, third = _keys(operation, base, other, base | {"presence_penalty": 1})
    assert first == second != third


async def test_operations() -> None:
    """generate and complete ask the same; a chat of the same text does not."""
    text = {"prompt": "x", "temperature": 0}
    key = await _key(generate, text)
    assert await _key(complete, text) == key
    assert await _key(chat, CHAT | {"n": 1}) != key


async def test_max_length() -> None:
    """max_length counts where it holds: given, or alone."""
    text = {"prompt": "x", "temperature": 0}
    keys = [await _key(complete, text | more) for more in ({}, {"max_length": 100}, {"max_length": 50})]
    assert keys[0] == keys[1] != keys[2]
    keys = [await _key(complete, text | {"max_new_tokens": 5} | more) for more in ({}, {"max_length": 100})]
    assert keys[0] != keys[1]


async def test_order_of_biases() -> None:
    """Biases are added whatever their order; stop strings keep theirs."""
    text = {"prompt": "x", "temperature": 0}
    one, other = ({"logit_bias": dict(pairs)} for pairs in ([("1", 1), ("2", 2)], [("2", 2), ("1", 1)]))
    assert await _key(complete, text | one) == await _key(complete, text | other)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "n"},
        {"revision": "r"},
        {"fingerprint": "f"},
        {"context_length": 99},
        {"kv_tokens": 99},
    ],
)
async def test_other_model(change: dict[str, Any]) -> None:
    """Another model, another revision of it, or other numbers in it, give other answers."""
    payload = {"prompt": "x", "temperature": 0}
    assert await _key(complete, payload, replace(INFO, **change)) != await _key(complete, payload)


async def test_callers() -> None:
    """Callers have keys of their own, if that is set; so nobody sees what another has asked."""
    payload = {"prompt": "x", "temperature": 0}
    keys = {await _key(complete, payload, caller=caller) for caller in ("", "a", "b", "a")}
    assert len(keys) == 3
    for per_caller, statuses in ((True, ["miss", "miss", "hit"]), (False, ["miss", "hit", "hit"])):
        callers = iter("aba")
        shared = caching(replace(fake_context(), caller=callers.__next__), per_caller=per_caller)
        found = [(await complete.handle(payload, shared))["usage"]["cache"]["status"] for _ in range(3)]
        assert found == statuses


# A kept answer is the answer


def _less(answer: Any) -> Any:
    """Without what may differ: ids, and what the cache had to do with it."""
    if isinstance(answer, dict):
        return {name: _less(value) for name, value in answer.items() if name not in ("id", "cache")}
    return [_less(part) for part in answer] if isinstance(answer, list) else answer


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
@pytest.mark.parametrize("logprobs", [None, 2])
async def test_hit_is_the_answer(operation: Any, payload: dict[str, Any], logprobs: int | None) -> None:
    """Plain or streamed, and whichever came first, a kept answer is the computed one to the last field."""
    if logprobs is not None:
        payload = payload | ({"logprobs": True, "top_logprobs": 2} if operation is chat else {"logprobs": 2})
    engine = FakeEngine(token_length=9, cached_tokens=4)
    streamed = payload | ({"stream_options": {"include_usage": True}} if operation is chat else {})
    plain = await operation.handle(payload, fake_context(engine))
    events = [event async for event in operation.stream(streamed, fake_context(engine))]
    for order in ((0, 1, 0, 1), (1, 0, 1, 0)):
        engine = FakeEngine(token_length=9, cached_tokens=4)
        ctx = caching(fake_context(engine))
        statuses = []
        for stream in order:
            if stream:
                found = [event async for event in operation.stream(streamed, ctx)]
                assert _less(found) == _less(events)
                usage = found[-1]["usage"]
            else:
                answer = await operation.handle(payload, ctx)
                assert _less(answer) == _less(plain)
                usage = answer["usage"]
            statuses.append(usage["cache"]["status"])
        assert statuses == ["miss", "hit", "hit", "hit"]
        assert len(engine.jobs) == 1


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_hit_asks_nothing_of_the_model(operation: Any, payload: dict[str, Any]) -> None:
    """A hit needs the model's name only: nothing is tokenized, nothing computed."""

    class Once(FakeEngine):
        encoded = 0

        async def encode(self, text: str, *, background: bool = False) -> tuple[int, ...]:
            self.encoded += 1
            return await super().encode(text)

    engine = Once()
    ctx = caching(fake_context(engine))
    await operation.handle(payload, ctx)
    before = engine.encoded
    await operation.handle(payload, ctx)
    assert (engine.encoded, len(engine.jobs)) == (before, 1)


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_directives(operation: Any, payload: dict[str, Any]) -> None:
    """no-store neither reads nor keeps, no-cache computes and keeps, max-age bounds the age."""
    now = 1000.0
    engine = FakeEngine()
    ctx = caching(fake_context(engine), lambda: now)

    async def ask(control: str | None) -> tuple[str, float | None, bool]:
        use = (await operation.handle(payload | {"cache_control": control}, ctx))["usage"]["cache"]
        return use["status"], use["age_seconds"], use["key"] is not None

    assert await ask("no-store") == ("bypass", None, False)
    assert await ask(None) == ("miss", None, True)
    now += 10
    assert await ask("no-store") == ("bypass", None, False)
    assert await ask("max-age=10") == ("hit", 10, True)
    assert await ask("max-age=9") == ("miss", None, True)
    assert await ask("max-age=9") == ("hit", 0, True)
    now += 10
    assert await ask("no-cache") == ("bypass", None, True)
    assert await ask("max-age=never") == ("hit", 0, True)
    assert len(engine.jobs) == 5


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_what_may_differ_is_not_kept(operation: Any, payload: dict[str, Any]) -> None:
    """A sampled request without a seed is computed each time; with a seed once."""
    engine = FakeEngine()
    ctx = caching(fake_context(engine))
    statuses = [
        (await operation.handle(payload | {"temperature": 0.7, "seed": seed}, ctx))["usage"]["cache"]["status"]
        for seed in (None, None, 1, 1, 2)
    ]
    assert statuses == ["bypass", "bypass", "miss", "hit", "miss"]
    assert ctx.cache is not None
    assert (await ctx.cache.stats()).bypassed == 2


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_together(operation: Any, payload: dict[str, Any]) -> None:
    """The same asked by many at once is computed once, for those who stream and those who do not."""
    engine = FakeEngine(pause=0.002)
    ctx = caching(fake_context(engine))

    async def stream() -> str:
        return str([event async for event in operation.stream(payload, ctx)][-1].get("object"))

    answers = await asyncio.gather(*(operation.handle(payload, ctx) for _ in range(5)), *(stream() for _ in range(5)))
    statuses = sorted(answer["usage"]["cache"]["status"] for answer in answers[:5])
    assert statuses == ["miss", *["shared"] * 4]
    assert len({str(_less(answer)) for answer in answers[:5]}) == 1
    assert (len(engine.jobs), engine.open_streams, ctx.models.leases) == (1, 0, 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_one_who_cannot_pay_does_not_keep_others_from_it(operation: Any, payload: dict[str, Any]) -> None:
    """Who joined a request that its caller then could not pay for gets the answer, and pays for it."""
    engine, paying = FakeEngine(), asyncio.Event()
    bills: list[str] = []

    def caller(name: str, means: bool) -> Context:
        async def reserve(max_tokens: int) -> Commit:
            bills.append(name)
            await paying.wait()
            if not means:
                raise RateLimited("planted")
            return await reserve_unlimited(max_tokens)

        return replace(ctx, reserve=reserve)

    ctx = caching(fake_context(engine), per_caller=False)
    calls = []
    for name, means in (("poor", False), ("also poor", False), ("rich", True)):
        calls.append(asyncio.create_task(operation.handle(payload, caller(name, means))))
        await asyncio.sleep(0.01)
    assert bills == ["poor"]
    paying.set()
    *refused, answer = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in refused] == [RateLimited, RateLimited]
    assert isinstance(answer, dict)
    assert sorted(bills) == ["also poor", "poor", "rich"]
    assert len(engine.jobs) == 1


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
@pytest.mark.parametrize("leave", ["cancel", "close"])
async def test_all_gone(operation: Any, payload: dict[str, Any], leave: str) -> None:
    """When everybody who waits has gone, the engine and the lease are free at once, and nothing is kept."""
    engine = FakeEngine(words=("a",) * 1000, pause=0.005)
    ctx = caching(fake_context(engine))
    call = asyncio.create_task(operation.handle(payload, ctx))
    events = operation.stream(payload, ctx)
    await anext(events)
    call.cancel()
    await asyncio.wait([call])
    assert engine.open_streams == 1
    await anext(events)
    if leave == "close":
        await events.aclose()
    else:
        reader = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.wait([reader])
    assert (engine.open_streams, ctx.models.leases) == (0, 0)  # type: ignore[attr-defined]
    assert ctx.cache is not None
    assert (await ctx.cache.stats()).entries == 0


@pytest.mark.parametrize(
    ("engine", "more", "error"),
    [
        (lambda: FakeEngine(fail_after=0, failure=TooManyRequests("full")), {}, TooManyRequests),
        (lambda: FakeEngine(fail_after=3, failure=TooManyRequests("full")), {}, TooManyRequests),
        (lambda: FakeEngine(info=replace(INFO, context_length=1)), {}, InvalidRequest),
        (FakeEngine, {"logit_bias": {"999": 1}}, InvalidRequest),
    ],
)
@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_errors(
    operation: Any,
    payload: dict[str, Any],
    engine: Callable[[], FakeEngine],
    more: dict[str, Any],
    error: type[Exception],
) -> None:
    """An error is the caller's, is told before the first event of a stream, and is never kept."""
    model = engine()
    ctx = caching(fake_context(model))
    for _ in range(2):
        with pytest.raises(error):
            await operation.handle(payload | more, ctx)
        with pytest.raises(error):
            async for _ in operation.stream(payload | more, ctx):
                pass
    assert (model.open_streams, ctx.models.leases) == (0, 0)  # type: ignore[attr-defined]
    assert ctx.cache is not None
    assert (await ctx.cache.stats()).entries == 0


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_observed(operation: Any, payload: dict[str, Any]) -> None:
    """What the cache had to do with it is told before the first token, and the usage at the end, hit or not."""
    seen: list[TokenUsage] = []
    ctx = replace(caching(fake_context(FakeEngine(pause=0.001))), observe=seen.append)
    for status in ("miss", "hit"):
        seen.clear()
        events = operation.stream(payload, ctx)
        await anext(events)
        assert seen == [TokenUsage(cache=seen[0].cache)]
        assert seen[0].cache is not None
        assert seen[0].cache.status == status
        async for _ in events:
            pass
        assert seen[1].cache == seen[0].cache
        assert seen[1].completion_tokens > 0
        assert len(seen) == 2


@pytest.mark.parametrize(("operation", "payload"), OPERATIONS)
async def test_without_a_cache(operation: Any, payload: dict[str, Any]) -> None:
    """With answers not kept at all, each is computed and nothing is told."""
    engine = FakeEngine()
    ctx: Context = fake_context(engine)
    for _ in range(2):
        answer = await operation.handle(payload | {"cache_control": "max-age=5"}, ctx)
        assert "cache" not in answer["usage"]
    assert len(engine.jobs) == 2
    await until(lambda: engine.open_streams == 0)


@pytest.mark.parametrize(("most", "elsewhere"), [(1, False), (400, True)])
@pytest.mark.parametrize(
    ("operation", "payload"),
    [
        (complete, {"prompt": "x", "logprobs": 2, "max_new_tokens": 1}),
        (completions, {"prompt": "x", "logprobs": 2, "max_tokens": 1}),
        (chat, {"messages": CHAT["messages"], "logprobs": True, "top_logprobs": 2, "max_tokens": 1}),
    ],
    ids=["complete", "completions", "chat"],
)
async def test_many_log_probabilities_are_rendered_elsewhere(
    operation: Any, payload: dict[str, Any], most: int, elsewhere: bool
) -> None:
    """On another thread than the event loop's, which goes on with other requests; a few are rendered on it."""
    threads = set()

    class Watched(FakeEngine):
        def token_bytes(self, token_id: int) -> bytes:
            threads.add(threading.get_ident())
            return super().token_bytes(token_id)

    limit = "max_new_tokens" if operation is complete else "max_tokens"
    answer = await operation.handle(payload | {limit: most}, fake_context(Watched(words=("a", "b") * 200)))
    assert answer["usage"]["completion_tokens"] == most
    assert threads
    assert (threading.get_ident() not in threads) == elsewhere


async def test_a_kept_answer_gives_others_their_turn() -> None:
    """Tokens that never wait for an engine do not hold up the event loop until the last of them."""
    ctx = caching(fake_context(FakeEngine(words=("a",) * 200)))
    payload = {"prompt": "x", "max_new_tokens": 200, "temperature": 0}
    await complete.handle(payload, ctx)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    answer = await complete.handle(payload, ctx)
    task.cancel()
    assert answer["usage"]["cache"]["status"] == "hit"
    assert turns >= 10
