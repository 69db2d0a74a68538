"""The response cache seen from outside: headers, directives, callers, and clients that go away."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from handlers.local import build_context
from loadtests.service import Service, running_service
from runtime.settings import Settings
from tests.support.fakes import FakeEngine, caching, fake_context, serving, until

GREEDY: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "temperature": 0}
ROUTES = [
    ("/generate", {"prompt": "x", "temperature": 0}),
    ("/complete", {"prompt": "x", "temperature": 0}),
    ("/chat/completions", GREEDY),
    ("/v1/chat/completions", GREEDY),
]


@asynccontextmanager
async def _service(
    engine: FakeEngine | None = None, clock: Callable[[], float] | None = None, **settings: Any
) -> AsyncIterator[tuple[aiohttp.ClientSession, Any]]:
    ctx = caching(fake_context(engine), clock)
    async with serving(ctx, **settings) as url, aiohttp.ClientSession(url) as session:
        yield session, ctx


async def _ask(
    session: aiohttp.ClientSession, path: str = "/chat/completions", payload: dict[str, Any] = GREEDY, **headers: str
) -> tuple[str | None, str | None, str | None]:
    """X-Cache, Age and X-Cache-Key."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with session.post(path, json=payload, headers=names) as response:
        assert response.status == 200
        await response.read()
        return tuple(response.headers.get(name) for name in ("X-Cache", "Age", "X-Cache-Key"))  # type: ignore[return-value]


@pytest.mark.parametrize(("path", "payload"), ROUTES)
@pytest.mark.parametrize("stream", [False, True])
async def test_headers(path: str, payload: dict[str, Any], stream: bool) -> None:
    """Every answer says what the cache had to do with it, before its first byte; so does its usage."""
    now = 1000.0
    async with _service(clock=lambda: now) as (session, _):
        payload = payload | {"stream": stream}
        status, age, key = await _ask(session, path, payload)
        assert (status, age) == ("MISS", None)
        assert key is not None
        assert len(key) == 64
        now += 9.9
        assert await _ask(session, path, payload) == ("HIT", "9", key)
        assert await _ask(session, path, payload | {"stream": not stream}) == ("HIT", "9", key)
        assert await _ask(session, path, payload | {"temperature": 1}) == ("BYPASS", None, None)
        if not stream:
            async with session.post(path, json=payload) as response:
                cache = (await response.json())["usage"]["cache"]
            assert (cache["status"], cache["key"]) == ("hit", key)
            assert cache["age_seconds"] == pytest.approx(9.9)


async def test_one_connection() -> None:
    """What is told of one request is not told of the next on the same connection."""
    async with _service() as (session, _):
        await _ask(session)
        async with session.get("/health") as response:
            assert "X-Cache" not in response.headers
        async with session.post("/chat/completions", json={"messages": []}) as response:
            assert response.status == 400
            assert "X-Cache" not in response.headers


async def test_header_directives() -> None:
    """The request's Cache-Control counts where the body says nothing; odd ones harm nobody."""
    now = 1000.0
    async with _service(clock=lambda: now) as (session, _):
        assert (await _ask(session, Cache_Control="no-store"))[0] == "BYPASS"
        assert (await _ask(session, Cache_Control="max-age=10"))[0] == "MISS"
        assert (await _ask(session, Cache_Control="max-age=0"))[0] == "HIT"
        now += 11
        assert (await _ask(session, Cache_Control="max-age=10"))[0] == "MISS"
        assert (await _ask(session, Cache_Control="no-cache"))[0] == "BYPASS"
        assert (await _ask(session, payload=GREEDY | {"cache_control": "max-age=99"}, Cache_Control="no-store"))[
            0
        ] == "HIT"
        assert (await _ask(session, payload=GREEDY | {"cache_control": None}, Cache_Control="no-store"))[0] == "BYPASS"
        assert (await _ask(session, Cache_Control="öl=1, \t,,max-stale " + "x" * 7000))[0] == "HIT"
        async with session.get("/models", headers={"Cache-Control": "no-cache"}) as response:
            assert response.status == 200


@pytest.mark.parametrize("per_key", [True, False])
async def test_callers(per_key: bool) -> None:
    """Whoever sends another credential asks anew, unless answers are shared by setting."""
    ctx = caching(fake_context(), per_caller=per_key)
    async with serving(ctx) as url, aiohttp.ClientSession(url) as session:
        found = [
            (await _ask(session, **headers))[0]
            for headers in (
                {},
                {"Authorization": "Bearer a"},
                {"Authorization": "Bearer b"},
                {"X_API_Key": "Bearer a"},
                {},
                {"Authorization": "Bearer a"},
            )
        ]
    assert found == (["MISS"] * 4 + ["HIT"] * 2 if per_key else ["MISS"] + ["HIT"] * 5)


async def test_pages_may_read_the_headers() -> None:
    """A page of an allowed origin sees them."""
    async with (
        _service(cors_origins=("https://app.example",)) as (session, _),
        session.post("/chat/completions", json=GREEDY, headers={"Origin": "https://app.example"}) as response,
    ):
        exposed = response.headers["Access-Control-Expose-Headers"]
    assert {"X-Cache", "X-Cache-Key", "Age"} <= {name.strip() for name in exposed.split(",")}


async def test_clients_go_away() -> None:
    """Of many clients that wait for one answer, those that hang up disturb nobody; the last frees all."""
    engine = FakeEngine(words=("a",) * 100_000, pause=0.001)
    async with _service(engine) as (session, ctx):
        streams = [await session.post("/chat/completions", json=GREEDY | {"stream": True}) for _ in range(3)]
        assert sorted(stream.headers["X-Cache"] for stream in streams) == ["MISS", "SHARED", "SHARED"]
        for stream in streams[:2]:
            stream.close()
            assert (await streams[2].content.readuntil(b"\n\n")).startswith(b"data: ")
        await until(lambda: ctx.models.leases == 2)  # the computation's, and that of the one who is left
        assert engine.open_streams == 1
        streams[2].close()
        await until(lambda: ctx.models.leases == 0)
        assert engine.open_streams == 0
        assert (await ctx.cache.stats()).entries == 0


async def test_stream_of_a_hit() -> None:
    """The events of a hit are those of the computed stream, byte for byte, ids and times aside."""
    async with _service() as (session, _):
        found = []
        for _ in range(2):
            async with session.post("/complete", json=ROUTES[1][1] | {"stream": True, "logprobs": 1}) as response:
                *events, last, done = (await response.text()).removesuffix("\n\n").split("\n\n")
            usage = json.loads(last.removeprefix("data: "))
            found.append((events, usage["usage"].pop("cache")["status"], usage, done))
    assert found[0][0] == found[1][0]
    assert (found[0][1], found[1][1]) == ("miss", "hit")
    assert found[0][2:] == found[1][2:]


async def test_many_at_once() -> None:
    """A crowd that asks the same question, streaming or not, is answered by one computation."""
    engine = FakeEngine(words=("a",) * 50, pause=0.002)
    async with _service(engine) as (session, ctx):
        found = await asyncio.gather(*(_ask(session, payload=GREEDY | {"stream": n % 2 == 0}) for n in range(40)))
        assert len(engine.jobs) == 1
        assert sorted({status for status, _, _ in found if status}) in (["MISS", "SHARED"], ["HIT", "MISS", "SHARED"])
        stats = await ctx.cache.stats()
        assert stats.misses == 1
        assert stats.hits + stats.shared == 39


def test_off() -> None:
    """RESPONSE_CACHE=off keeps no answers; every other value keeps them where it says."""
    assert build_context(Settings.load(response_cache="off")).cache is None
    assert build_context(Settings.load()).cache is not None


async def test_redis_away(tmp_path: Path) -> None:
    """A service whose Redis is not there answers all the same, and counts it."""
    settings = Settings.load(response_cache="redis", redis_url="redis://127.0.0.1:1/0", cache_dir=tmp_path)
    cache = build_context(settings).cache
    assert cache is not None
    ctx = replace(fake_context(), cache=cache)
    async with serving(ctx) as url, aiohttp.ClientSession(url) as session:
        assert [(await _ask(session))[0] for _ in range(3)] == ["MISS"] * 3
        async with session.get("/cache/stats") as response:
            stats = await response.json()
        assert (stats["store"], stats["errors"], stats["misses"]) == ("redis", 1, 3)
        async with session.delete("/cache") as response:
            assert response.status == 503
            assert (await response.json())["code"] == "cache_unavailable"


async def test_restart(tmp_path: Path) -> None:
    """What an SQLite file keeps is there for the next process."""
    for expected in ("MISS", "HIT"):
        settings = Settings.load(response_cache="sqlite", cache_dir=tmp_path)
        ctx = replace(fake_context(), cache=build_context(settings).cache)
        async with serving(ctx) as url, aiohttp.ClientSession(url) as session:
            assert (await _ask(session))[0] == expected
    assert (tmp_path / "responses.sqlite").exists()


def _post(service: Service, payload: dict[str, Any]) -> http.client.HTTPResponse:
    connection = service.connect(60)
    connection.request("POST", "/complete", json.dumps(payload), {"Content-Type": "application/json"})
    return connection.getresponse()


def test_ended_in_the_middle(tiny_gpt2: Path, tmp_path: Path) -> None:
    """A service that is ended while it computes an answer keeps nothing of it; what was whole is there after."""
    long = {"prompt": "You may", "max_new_tokens": 120, "num_return_sequences": 512, "temperature": 0}
    short = {"prompt": "You", "max_new_tokens": 3, "temperature": 0}
    settings = {
        "MODEL_NAME": str(tiny_gpt2),
        "CACHE_DIR": str(tmp_path),
        "RESPONSE_CACHE": "sqlite",
        "MAX_SEQUENCES": "1024",
        "DRAIN_SECONDS": "0",
    }
    with running_service(**settings) as service:
        service.wait("/readyz")
        whole = json.load(_post(service, short))
        stream = _post(service, long | {"stream": True})
        assert stream.readline().startswith(b"data: ")
        service.process.terminate()
        assert json.loads(stream.read().split(b"data: ")[-1])["error"]["code"] == "draining"
        assert service.process.wait(30) == 0
        assert "Traceback" not in service.log.read_text()
    with running_service(**settings) as service:
        service.wait("/readyz")
        assert _post(service, long | {"max_new_tokens": 1}).headers["X-Cache"] == "MISS"
        again = json.load(_post(service, short))
        assert again["usage"].pop("cache")["status"] == "hit"
        assert whole["usage"].pop("cache")["status"] == "miss"
        assert again == whole
        assert _post(service, long | {"stream": True}).headers["X-Cache"] == "MISS"
