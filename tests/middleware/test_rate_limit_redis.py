"""middleware.rate_limit on Redis: replicas share what a client may use, and Redis may fail."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from runtime.rate_limits import redis as redis_limits
from tests.support.fakes import FakeEngine, until
from tests.support.limits import ASK, COST, HUNDRED, ask, limited, tokens_left
from tests.support.redis_server import REDIS_URL, own_names


@pytest.fixture
def own_redis(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Settings of replicas that share a real Redis, under a prefix of the test's own."""
    with own_names() as prefix:
        monkeypatch.setattr(redis_limits.RedisLimits.__init__, "__defaults__", (prefix,))
        yield {"rate_limit_store": "redis", "redis_url": REDIS_URL}


async def test_replicas_share_a_limit(own_redis: dict[str, Any]) -> None:
    """Two services on one Redis, asked at the same time, let in as many requests together as one would."""
    async with AsyncExitStack() as held:
        replicas = [
            await held.enter_async_context(limited(**own_redis, rate_limit_requests_per_minute=40)) for _ in range(2)
        ]
        answers = await asyncio.gather(*(ask(one) for one in replicas for _ in range(30)))
    assert sorted(answer.status for answer in answers) == [200] * 20 + [429] * 40


async def test_replicas_share_tokens(own_redis: dict[str, Any]) -> None:
    """What one service holds or has charged, the other's headers and refusals show."""
    engine = FakeEngine(pause=0.3)
    async with limited(engine, **own_redis, **HUNDRED) as one, limited(**own_redis, **HUNDRED) as other:
        running = asyncio.create_task(ask(one, "/complete", ASK | {"max_new_tokens": 79}))
        await until(lambda: engine.open_streams)
        assert await tokens_left(other) == 15
        assert (await ask(other, "/complete", ASK | {"max_new_tokens": 15})).status == 429
        assert (await running).left["tokens"]["r"] == 95 - COST
        assert await tokens_left(other) == 95 - COST


async def test_a_client_that_goes_away_pays_what_was_used_in_redis(own_redis: dict[str, Any]) -> None:
    """The settlement reaches Redis though its request was cancelled."""
    engine = FakeEngine(words=("a",) * 50, pause=0.02)
    asked = ASK | {"max_new_tokens": 50, "stream": True}
    async with limited(engine, **own_redis, **HUNDRED) as session:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(session, "/complete", asked), 0.2)
        await until(lambda: not engine.open_streams)
        for _ in range(100):  # the settlement is under way
            if (left := await tokens_left(session)) > 95 - 51:
                break
            await asyncio.sleep(0.01)
    assert 95 - 51 < left < 95


@asynccontextmanager
async def no_redis(kind: str) -> AsyncIterator[str]:
    """The URL of a Redis that is none: nobody listens there, or whoever does says nothing."""
    if kind == "closed":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        yield f"redis://127.0.0.1:{port}/0"
        return

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


@pytest.mark.parametrize("kind", ["closed", "silent"])
async def test_redis_away_open(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """By default nobody is limited then: answers come, without headers; one line is logged, and each time counted."""
    async with (
        no_redis(kind) as url,
        limited(rate_limit_store="redis", redis_url=url, rate_limit_tokens_per_minute=100) as session,
    ):
        async with asyncio.timeout(10):
            answers = [await ask(session, "/complete", ASK) for _ in range(8)]
        metrics = (await ask(session, "/metrics")).body
    assert {answer.status for answer in answers} == {200}
    assert all(not answer.left for answer in answers)
    assert "warmstart:rate_limit_store_errors_total 9.0" in metrics
    lines = [record for record in caplog.records if "store of rate limits is unavailable" in record.message]
    assert [record.levelno for record in lines] == [logging.WARNING]
    assert "no client is limited" in lines[0].message


@pytest.mark.parametrize("kind", ["closed", "silent"])
async def test_redis_away_closed(kind: str) -> None:
    """By setting nobody gets in then: 503, at once and worth trying again. Probes answer all the same."""
    async with (
        no_redis(kind) as url,
        limited(rate_limit_store="redis", redis_url=url, rate_limit_fail="closed") as session,
        asyncio.timeout(10),
    ):
        answers = [await ask(session, "/complete", ASK) for _ in range(8)]
        assert (await ask(session, "/livez")).status == 200
    assert {(answer.status, answer.body["code"]) for answer in answers} == {(503, "rate_limit_unavailable")}
    assert answers[0].headers["Retry-After"] == "1"


async def test_redis_comes_back(own_redis: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """After an outage requests are counted again, and the log says so; the next outage gets its own line."""
    run, away = redis_limits.SharedRedis.run, False

    async def sometimes(self: Any, *arguments: Any) -> Any:
        if away:
            raise redis_limits.RedisUnavailable("planted")
        return await run(self, *arguments)

    monkeypatch.setattr(redis_limits.SharedRedis, "run", sometimes)
    caplog.set_level(logging.INFO, "warmstart.edge")
    async with limited(**own_redis, rate_limit_requests_per_minute=40) as session:
        answers = []
        for turn in (False, True, True, False, True, False):
            away = turn
            answers.append(await ask(session))
    seen = [answer.left.get("requests", {}).get("r") for answer in answers]
    assert seen == [19, None, None, 18, None, 17]
    told = [record.message for record in caplog.records if "store of rate limits" in record.message]
    assert ["again" in line for line in told] == [False, True, False, True]


async def test_redis_goes_away_in_the_middle(own_redis: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that was let in ends as it would, though what it holds cannot be settled."""
    engine = FakeEngine(pause=0.05)
    async with limited(engine, **own_redis, **HUNDRED) as session:
        running = asyncio.create_task(ask(session, "/complete", ASK))
        await until(lambda: engine.open_streams)

        async def gone(self: Any, *arguments: Any) -> Any:
            raise redis_limits.RedisUnavailable("planted")

        monkeypatch.setattr(redis_limits.SharedRedis, "run", gone)
        answer = await running
    assert (answer.status, answer.body["text"]) == (200, "Hello there.")
