"""handlers.operations.cache: what the kept answers are worth, and dropping them."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.operations import cache, complete
from handlers.schemas.reports import CacheStatsResponse, ClearCacheResponse
from runtime.errors import InvalidRequest
from tests.support.fakes import FakeEngine, caching, fake_context

GREEDY: dict[str, Any] = {"prompt": "x", "temperature": 0}


async def test_stats() -> None:
    """Every figure, and the share of requests that did not have to be computed."""
    ctx = caching(fake_context())
    for payload in (GREEDY, GREEDY, GREEDY, {"prompt": "x"}):
        await complete.handle(payload, ctx)
    found = await cache.stats({}, ctx)
    assert found["entries"] == 1
    assert 0 < found["bytes"] < found["limit_bytes"] == 2**20
    assert (found["store"], found["ttl_seconds"], found["rate"]) == ("memory", 3600, 2 / 3)
    assert (found["hits"], found["misses"], found["shared"], found["bypassed"]) == (2, 1, 0, 1)
    assert found["saved_tokens"] == 6
    CacheStatsResponse.model_validate(found, extra="forbid", strict=True)


async def test_stats_of_nothing() -> None:
    """Before the first request the rate is nothing; without a cache everything is."""
    assert (await cache.stats({}, caching(fake_context())))["rate"] == 0
    found = await cache.stats({}, fake_context())
    assert found.pop("store") == "off"
    assert set(found.values()) == {0}


async def test_clear() -> None:
    """All of them, a model's, or those whose key begins so; the next request is computed again."""
    engine = FakeEngine()
    ctx = caching(fake_context(engine))
    keys = [(await complete.handle(GREEDY | {"prompt": p}, ctx))["usage"]["cache"]["key"] for p in "ab"]
    assert await cache.clear({"model": "other"}, ctx) == {"removed": 0}
    assert await cache.clear({"prefix": keys[0][:20]}, ctx) == {"removed": 1}
    assert (await complete.handle(GREEDY | {"prompt": "a"}, ctx))["usage"]["cache"]["status"] == "miss"
    assert (await complete.handle(GREEDY | {"prompt": "b"}, ctx))["usage"]["cache"]["status"] == "hit"
    assert await cache.clear({"model": "fake", "prefix": keys[1]}, ctx) == {"removed": 1}
    found = await cache.clear({}, ctx)
    assert found == {"removed": 1}
    ClearCacheResponse.model_validate(found, extra="forbid", strict=True)
    assert await cache.clear({}, ctx) == {"removed": 0}
    assert await cache.clear({}, fake_context()) == {"removed": 0}


@pytest.mark.parametrize(
    "payload", [{"prefix": ""}, {"prefix": "x"}, {"prefix": "A"}, {"prefix": "0" * 65}, {"key": "0"}]
)
async def test_wrong_clear(payload: dict[str, Any]) -> None:
    """A prefix that no key can have is refused by name, and nothing is dropped by mistake."""
    with pytest.raises(InvalidRequest) as caught:
        await cache.clear(payload, caching(fake_context()))
    assert caught.value.param == next(iter(payload))
