"""A bad line between service and Redis: requests are answered or refused as the settings say, and never hang."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar
from uuid import uuid4

import aiohttp
import pytest

from loadtests.service import Service, running_service
from runtime.response_cache.cache import PAUSE_SECONDS, ResponseCache
from runtime.response_cache.redis import RedisStore
from runtime.signatures.client import Signer
from tests.attacks.fault_proxy import FaultProxy
from tests.attacks.faults import FAULTS, cut, garble, refuse, stall
from tests.attacks.keys import SECRET, SIGNING_ID, signing_record
from tests.attacks.raw import PATIENCE, Answer, exchange
from tests.support.clock import Clock
from tests.support.fakes import FakeEngine, fake_context, serving
from tests.support.redis_server import proxied_redis
from tests.support.soak import SOAK

T = TypeVar("T")
GREEDY = {"prompt": "x", "temperature": 0}
# Limits and nonces make their calls through the same client: in the short form one test meets every fault.
SOME_FAULTS = FAULTS if SOAK else [stall, garble, refuse]


@asynccontextmanager
async def _service(**settings: str) -> AsyncIterator[tuple[FaultProxy, Service]]:
    async with proxied_redis() as (proxy, url):
        with running_service(PRELOAD="false", LOG_FORMAT="json", REDIS_URL=url, **settings) as service:
            await asyncio.to_thread(service.wait, "/livez", 60)
            yield proxy, service
            assert "Traceback" not in service.log.read_text()


async def _get(service: Service, **fields: str) -> Answer:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    raw = f"GET /models HTTP/1.1\r\nHost: 127.0.0.1:{service.port}\r\nConnection: close\r\n{lines}\r\n".encode()
    return (await asyncio.to_thread(exchange, service.port, raw)).answers[0]


async def _until(ask: Callable[[], Awaitable[T]], good: Callable[[T], bool]) -> T:
    """Ask until the answer is as it should be again; the last one if it never is."""
    for _ in range(int(10 * PATIENCE)):
        answer = await ask()
        if good(answer):
            break
        await asyncio.sleep(0.1)
    return answer


@pytest.mark.parametrize(
    ("fail", "status", "faults"), [("open", 200, SOME_FAULTS), ("closed", 503, FAULTS)], ids=["open", "closed"]
)
async def test_rate_limits(fail: str, status: int, faults: list[Callable[[FaultProxy], None]]) -> None:
    """While Redis is not to be had, RATE_LIMIT_FAIL decides; when it is back, so are the limits."""
    limits = {"RATE_LIMIT_ENABLED": "true", "RATE_LIMIT_STORE": "redis", "RATE_LIMIT_FAIL": fail}
    async with _service(**limits, RATE_LIMIT_REQUESTS_PER_MINUTE="1000000") as (proxy, service):

        def counted(answer: Answer) -> bool:
            return answer.status == 200 and "ratelimit" in answer.headers

        for fault in faults:
            assert counted(await _until(lambda: _get(service), counted)), f"before {fault.__name__}"
            fault(proxy)
            # The connection that the fault has broken is tried once more, so the second answer is the one to judge.
            answers = [await _get(service) for _ in range(3)]
            assert {answer.status for answer in answers[1:]} == {status}, fault.__name__
            assert not any(counted(answer) for answer in answers[1:]), fault.__name__
            proxy.heal()
            proxy.cut()
        assert counted(await _until(lambda: _get(service), counted))


async def test_nonces() -> None:
    """While Redis is not to be had no signature passes, since it may have been used; a replay stays one afterwards."""
    signer = Signer(SIGNING_ID, SECRET)
    signing = {"API_KEYS": signing_record(), "REQUEST_SIGNING": "required", "SIGNING_NONCES": "redis"}
    async with _service(**signing) as (proxy, service):
        url = f"http://127.0.0.1:{service.port}/models"

        async def ask() -> Answer:
            return await _get(service, **signer.headers("GET", url))

        def served(answer: Answer) -> bool:
            return answer.status == 200

        for fault in SOME_FAULTS:
            assert served(await _until(ask, served)), f"before {fault.__name__}"
            used = signer.headers("GET", url)
            assert served(await _get(service, **used))
            fault(proxy)
            answers = [await ask(), await ask(), await _get(service, **used)]
            assert [answer.status for answer in answers[1:]] == [503, 503], fault.__name__
            assert b"nonces_unavailable" in answers[1].body
            proxy.heal()
            proxy.cut()
            assert served(await _until(ask, served)), f"after {fault.__name__}"
            assert (await _get(service, **used)).status == 401, fault.__name__


async def test_response_cache() -> None:
    """Whatever the line does, every question is answered with the words of the engine, from the cache or anew."""
    engine, monotonic = FakeEngine(), Clock()
    async with proxied_redis() as (proxy, url):
        store = RedisStore(url, 2**20, 3600, time.time, f"{{warmstart-test:{uuid4().hex}}}")
        cache = ResponseCache(
            store, limit_bytes=2**20, ttl_seconds=3600, per_caller=True, clock=time.time, monotonic=monotonic
        )
        async with serving(replace(fake_context(engine), cache=cache)) as service, aiohttp.ClientSession() as session:

            async def ask() -> str:
                async with asyncio.timeout(PATIENCE), session.post(f"{service}/generate", json=GREEDY) as response:
                    assert response.status == 200
                    assert "Hello there." in await response.text()
                    return response.headers["X-Cache"]

            assert [await ask(), await ask()] == ["MISS", "HIT"]
            for fault in (stall, cut, garble):
                fault(proxy)
                for _ in range(3):
                    await ask()
                proxy.heal()
                proxy.cut()
                monotonic.now += PAUSE_SECONDS  # for which the store is left alone after a failure
                assert await _until(ask, lambda status: status == "HIT") == "HIT", fault.__name__
            await asyncio.to_thread(store.remove)
