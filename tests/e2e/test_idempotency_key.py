"""The header Idempotency-Key over HTTP: a repeated request gets the same answer and is not generated again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from runtime.errors import TooManyRequests
from tests.support.fakes import FakeEngine, fake_context, serving, until

KEY = {"Idempotency-Key": "one"}
BODY: dict[str, Any] = {"prompt": "x"}
PATH = "/v1/completions"


@asynccontextmanager
async def served(engine: FakeEngine, **settings: Any) -> AsyncIterator[aiohttp.ClientSession]:
    settings.setdefault("idempotency", "memory")
    async with serving(fake_context(engine), **settings) as url, aiohttp.ClientSession(url) as session:
        yield session


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_same_request_again(store: str, stream: bool, tmp_path: Path) -> None:
    """It gets the same bytes, an answer or all events of a stream, marked as a repetition; nothing is generated."""
    engine = FakeEngine()
    async with served(engine, idempotency=store, cache_dir=str(tmp_path), response_cache="off") as http:
        found = []
        for _ in range(2):
            async with http.post(PATH, json=BODY | {"stream": stream}, headers=KEY) as response:
                assert response.status == 200
                found.append((response.headers.get("Idempotency-Replayed"), await response.read()))
        assert [mark for mark, _ in found] == [None, "true"]
        assert found[0][1] == found[1][1]
        assert len(engine.jobs) == 1
        async with http.post(PATH, json=BODY | {"stream": stream}, headers={"Idempotency-Key": "two"}) as response:
            assert response.status == 200
        assert len(engine.jobs) == 2


async def test_another_request_with_the_key() -> None:
    """Another body is 422, another operation or caller has keys of its own."""
    async with served(FakeEngine()) as http:
        await http.post(PATH, json=BODY, headers=KEY)
        async with http.post(PATH, json={"prompt": "y"}, headers=KEY) as response:
            assert response.status == 422
            error = (await response.json())["error"]
        assert (error["code"], error["param"]) == ("idempotency_mismatch", "Idempotency-Key")
        for path, headers in (("/complete", KEY), (PATH, KEY | {"Authorization": "Bearer other"})):
            async with http.post(path, json={"prompt": "y"}, headers=headers) as response:
                assert response.status == 200


async def test_while_the_first_runs() -> None:
    """The second is 409 with Retry-After, and gets the answer once there is one."""
    engine = FakeEngine(pause=0.05)
    async with served(engine) as http:
        first = asyncio.create_task(http.post(PATH, json=BODY, headers=KEY))
        await until(lambda: engine.open_streams)
        async with http.post(PATH, json=BODY, headers=KEY) as response:
            assert (response.status, response.headers["Retry-After"]) == (409, "1")
            assert (await response.json())["error"]["param"] == "Idempotency-Key"
        assert (await first).status == 200
        async with http.post(PATH, json=BODY, headers=KEY) as response:
            assert response.headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_request_may_be_sent_again(stream: bool) -> None:
    """It keeps its own error, and stores nothing."""
    engine = FakeEngine(fail_after=0, failure=TooManyRequests("full", retry_after=3))
    async with served(engine) as http:
        async with http.post(PATH, json=BODY | {"stream": stream}, headers=KEY) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "3")
        engine.fail_after = None
        async with http.post(PATH, json=BODY | {"stream": stream}, headers=KEY) as response:
            assert response.status == 200
            assert "Idempotency-Replayed" not in response.headers


@pytest.mark.parametrize(
    ("settings", "headers"),
    [({"idempotency": "off"}, KEY), ({}, {"Idempotency-Key": "a b"}), ({}, {"Idempotency-Key": "x" * 257})],
)
async def test_keys_that_cannot_be_used(settings: dict[str, Any], headers: dict[str, str]) -> None:
    """They are refused with the header's name, not ignored."""
    async with served(FakeEngine(), **settings) as http, http.post(PATH, json=BODY, headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "Idempotency-Key"
