"""middleware.rate_limit: how many tokens each client may have computed, seen over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from runtime.errors import TooManyRequests
from runtime.response_cache.cache import ResponseCache
from tests.support.fakes import FakeEngine, caching, fake_context, until
from tests.support.limits import ASK, COST, HUNDRED, ask, key_of, limited, tokens_left

ROUTES = {
    "/generate": ASK,
    "/complete": ASK,
    "/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 10},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 10},
    "/v1/completions": {"prompt": "x", "max_tokens": 10},
    "/models/compare": {"prompt": "x", "variants": [{}], "max_new_tokens": 10, "score": False},
}


async def test_one_connection_of_many_clients() -> None:
    """As a proxy's may be: each request is charged to its own key, and to none if that has no limit."""
    keys = [key_of("k_a"), key_of("k_free", tokens_per_minute=0), key_of("k_b")]
    async with limited(api_keys="\n".join(line for _, line in keys), **HUNDRED) as session:
        assert session.connector is not None
        session.connector._limit = 1
        for turn in (1, 2):
            for key, _ in keys:
                answer = await ask(session, "/complete", ASK, X_API_Key=key)
                assert answer.status == 200
                assert answer.left.get("tokens", {}).get("r") == (None if key == keys[1][0] else 95 - turn * COST)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_costs_what_its_usage_says(path: str, stream: bool) -> None:
    """Whatever it could have cost is held while it runs; in the end its prompt and its new tokens are charged."""
    async with limited(**HUNDRED) as session:
        answer = await ask(session, path, ROUTES[path] | {"stream": stream})
        assert answer.status == 200
        assert answer.left["tokens"]["r"] == (95 - 11 if stream else 95 - COST)
        assert await tokens_left(session) == 95 - COST


async def test_sequences_and_variants_all_count() -> None:
    """Several prompts, several answers of each, and the sides of a comparison are charged one by one."""
    async with limited(**HUNDRED) as session:
        answer = await ask(session, "/v1/completions", {"prompt": ["x", "y"], "n": 2, "max_tokens": 3})
        assert answer.body["usage"]["total_tokens"] == 14
        assert await tokens_left(session) == 95 - 14
        compared = {"prompt": "x", "variants": [{}, {"temperature": 0}], "max_new_tokens": 10, "score": False}
        assert (await ask(session, "/models/compare", compared)).status == 200
        assert await tokens_left(session) == 95 - 14 - 2 * COST


async def test_scoring_a_prompt_costs_the_prompt() -> None:
    """max_tokens 0 generates nothing, and the prompt is charged all the same; held to the limit before it is scored."""
    asked = {"prompt": "x", "echo": True, "logprobs": 1, "max_tokens": 0}
    engine = FakeEngine(words=tuple("abcdefghijklmnopqrst"), token_length=20)
    async with limited(engine, **HUNDRED) as session:
        for turn in (1, 2, 3, 4):
            assert (await ask(session, "/v1/completions", asked)).status == 200
            assert await tokens_left(session) == 95 - 20 * turn
        assert (await ask(session, "/v1/completions", asked)).status == 429
        assert len(engine.jobs) == 4


async def test_more_tokens_than_are_left() -> None:
    """What may cost more than is left is refused before anything starts, as a plain answer even of a stream."""
    engine = FakeEngine()
    async with limited(engine, **HUNDRED) as session:
        for path, payload in ROUTES.items():
            if path != "/models/compare":
                asked = payload | {name: 94 for name in ("max_tokens", "max_new_tokens") if name in payload}
                for stream in (False, True):
                    await until_refused(session, path, asked | {"stream": stream})
    assert engine.open_streams == 0


async def until_refused(session: aiohttp.ClientSession, path: str, payload: dict[str, Any]) -> None:
    """Ask twice at most: the first answer costs tokens, so that the second cannot cost as many as there ever are."""
    answers = [await ask(session, path, payload) for _ in range(2)]
    refused = answers[-1]
    error = refused.body.get("error", refused.body)
    assert (refused.status, error["code"]) == (429, "rate_limited")
    assert "95 tokens" in error.get("message", error.get("detail"))
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.left["tokens"]["r"] < 95


async def test_more_tokens_than_there_ever_are() -> None:
    """What may cost more than the burst is no matter of waiting: 400, with both numbers and the setting's name."""
    async with limited(**HUNDRED) as session:
        refused = await ask(session, "/complete", {"prompt": "x", "max_new_tokens": 95})
        assert (refused.status, refused.body["code"]) == (400, "exceeds_rate_limit")
        assert "Retry-After" not in refused.headers
        for part in ("96 tokens", "95 are allowed at once", "100 per minute", "RATE_LIMIT_TOKENS_PER_MINUTE"):
            assert part in refused.body["detail"]
        assert await tokens_left(session) == 95


async def test_a_refused_variant_says_so() -> None:
    """A comparison's error stands in its answer, and that of one side does not keep the other from it."""
    compared = {"prompt": "x", "variants": [{}, {}], "max_new_tokens": 60, "score": False}
    async with limited(FakeEngine(pause=0.05), **HUNDRED) as session:
        answers = (await ask(session, "/models/compare", compared)).body["answers"]
    errors = [answer["error"] and answer["error"]["code"] for answer in answers]
    assert sorted(errors, key=str) == [None, "rate_limited"]


@pytest.mark.parametrize(
    ("engine", "used"),
    [
        (FakeEngine(fail_after=2), 1 + 2),
        (FakeEngine(fail_after=0), 0),
        (FakeEngine(fail_after=0, failure=TooManyRequests("the queue is full", retry_after=1)), 0),
        (FakeEngine(fail_after=1, failure=RuntimeError("planted")), 1 + 1),
    ],
    ids=["error in the middle", "error before the first token", "queue full", "bug"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_costs_what_was_used(engine: FakeEngine, used: int, stream: bool) -> None:
    """What is not used is given back; an engine that could not even begin costs nothing."""
    async with limited(engine, **HUNDRED) as session:
        await ask(session, "/complete", ASK | {"stream": stream})
        assert await tokens_left(session) == 95 - used


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_pays_what_was_used(stream: bool, cached: bool) -> None:
    """The prompt, and the tokens until then, of whatever was held."""
    engine = FakeEngine(words=("a",) * 50, pause=0.02)
    ctx = caching(fake_context(engine)) if cached else fake_context(engine)
    asked = ASK | {"max_new_tokens": 50, "stream": stream, "temperature": 0}
    async with limited(ctx, **HUNDRED) as session:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(session, "/complete", asked), 0.2)
        await until(lambda: not engine.open_streams)
        left = await tokens_left(session)
    assert 95 - 51 < left < 95


async def test_what_is_held_cannot_be_used_twice() -> None:
    """While an answer runs, all that it can cost is out of reach."""
    engine = FakeEngine(pause=0.3)
    async with limited(engine, **HUNDRED) as session:
        running = asyncio.create_task(ask(session, "/complete", ASK | {"max_new_tokens": 79}))
        await until(lambda: engine.open_streams)
        assert await tokens_left(session) == 15
        assert (await ask(session, "/complete", ASK | {"max_new_tokens": 15})).status == 429
        assert (await running).status == 200
        assert await tokens_left(session) == 95 - COST


# The response cache


async def test_kept_answers_cost_nothing() -> None:
    """Who gets an answer that is there already pays no tokens for it."""
    async with limited(caching(fake_context()), **HUNDRED) as session:
        for status in ("MISS", "HIT", "HIT"):
            answer = await ask(session, "/complete", ASK | {"temperature": 0})
            assert answer.headers["X-Cache"] == status
            assert await tokens_left(session) == 95 - COST


async def test_who_computes_pays() -> None:
    """Of two that ask the same at once, the first pays all of it, also if it does not wait for the answer."""
    keys = [key_of("k_a"), key_of("k_b")]
    engine = FakeEngine(pause=0.3)
    asked = ASK | {"temperature": 0}
    ctx = caching(fake_context(engine), per_caller=False)
    cache = ctx.cache
    assert isinstance(cache, ResponseCache)
    async with limited(ctx, api_keys="\n".join(line for _, line in keys), **HUNDRED) as session:
        first = asyncio.create_task(ask(session, "/complete", asked, X_API_Key=keys[0][0]))
        await until(lambda: engine.open_streams)
        second = asyncio.create_task(ask(session, "/complete", asked, X_API_Key=keys[1][0]))
        await until(lambda: cache.counters.shared == 1)
        first.cancel()
        answer = await second
        assert (answer.status, answer.headers["X-Cache"]) == (200, "SHARED")
        left = [(await ask(session, X_API_Key=key)).left["tokens"]["r"] for key, _ in keys]
    assert left == [95 - COST, 95]
    assert len(engine.jobs) == 1
