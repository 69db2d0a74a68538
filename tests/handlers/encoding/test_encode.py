"""handlers.encoding.encode: each input once, from the cache if it has it, and charged if it is computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from handlers.context import Commit, Context
from handlers.encoding.encode import Encoded, encode
from handlers.encoding.inputs import Inputs, Item
from runtime.errors import InvalidRequest, RateLimited, TooManyRequests
from runtime.types import CacheUse, TokenUsage
from tests.support.fake_encoder import FakeEncoder
from tests.support.fakes import caching, fake_context


class Charges:
    """Records what is reserved and what is used."""

    def __init__(self, left: int = 1000) -> None:
        self.left, self.reserved, self.used = left, list[int](), list[int]()

    async def reserve(self, tokens: int) -> Commit:
        if tokens > self.left:
            raise RateLimited("wait")
        self.reserved.append(tokens)

        async def commit(used: int) -> None:
            self.used.append(used)

        return commit


async def _encode(engine: FakeEncoder, ctx: Context, *items: Item, cache_control: str | None = None) -> Encoded:
    return await encode(engine, "embed", Inputs(items, "input", True, "", 100, "none"), ctx, cache_control)


async def test_each_input_once() -> None:
    """An input that comes twice is computed once and counts twice; the results have the order of the inputs."""
    engine, told = FakeEncoder(), list[TokenUsage]()
    found = await _encode(engine, replace(fake_context(), observe=told.append), "aa", "b", "aa")
    assert [len(batch) for batch in engine.embedded] == [2]
    assert np.array_equal(found.values[0], found.values[2])
    assert not np.array_equal(found.values[0], found.values[1])
    assert found.usage == TokenUsage(4 + 3 + 4)
    assert told == [found.usage]


async def test_vectors_are_cached_by_input() -> None:
    """A batch computes only what no batch before had; the vectors and the usage are the same to the bit."""
    engine, charges, now = FakeEncoder(), Charges(), [50.0]
    ctx = replace(caching(fake_context(), lambda: now[0]), reserve=charges.reserve)
    first = await _encode(engine, ctx, "aa", "b")
    now[0] = 60
    second = await _encode(engine, ctx, "c", "b", "aa")
    third = await _encode(engine, ctx, "aa", "c")
    assert [[len(given.ids) for given in batch] for batch in engine.embedded] == [[4, 3], [3]]
    assert np.array_equal(first.values[0], second.values[2])
    assert [found.usage for found in (first, second, third)] == [
        TokenUsage(7, cache=CacheUse("miss")),
        TokenUsage(10, cache=CacheUse("miss")),
        TokenUsage(7, cache=CacheUse("hit", age_seconds=10)),
    ]
    assert charges.reserved == charges.used == [7, 3], "what is cached is not charged"
    assert ctx.cache is not None
    stats = await ctx.cache.stats()
    assert (stats.entries, stats.hits, stats.misses) == (3, 4, 3)


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "x"},
        {"max_tokens": 50},
        {"truncate": "end"},
        {"items": [(97,)]},
        {"items": ["b"]},
    ],
)
async def test_what_makes_another_vector(other: dict[str, Any]) -> None:
    """Whatever may change a vector is in its key; so are the task and the caller."""
    engine, ctx = FakeEncoder(), caching(fake_context())
    inputs = Inputs(["a"], "input", True, "", 100, "none")
    for changed in (inputs, replace(inputs, **other)):
        assert (await encode(engine, "embed", changed, ctx, None)).usage.cache.status == "miss"  # type: ignore[union-attr]
    await encode(engine, "classify", inputs, ctx, None)
    found = await encode(engine, "embed", inputs, replace(ctx, caller=lambda: "somebody"), None)
    assert found.usage.cache is not None
    assert found.usage.cache.status == "miss"
    assert found.usage.cache.key is not None


async def test_directives() -> None:
    """no-store neither reads nor writes, no-cache computes and stores, and max-age refuses what is older."""
    engine, now = FakeEncoder(), [50.0]
    ctx = caching(fake_context(), lambda: now[0])
    statuses = []
    for directive in ("no-store", None, "no-cache", None, "max-age=5"):
        found = await _encode(engine, ctx, "a", cache_control=directive)
        statuses.append(found.usage.cache.status)  # type: ignore[union-attr]
        now[0] += 4
    now[0] += 4
    found = await _encode(engine, ctx, "a", cache_control="max-age=5")
    assert [*statuses, found.usage.cache.status] == ["bypass", "miss", "bypass", "hit", "miss", "miss"]  # type: ignore[union-attr]


async def test_clearing_while_it_is_computed() -> None:
    """What was begun before the cache was cleared is not stored after it."""
    ctx = caching(fake_context())

    class Clearing(FakeEncoder):
        async def embed(self, *args: Any, **kwargs: Any) -> Any:
            assert ctx.cache is not None
            await ctx.cache.clear()
            return await super().embed(*args, **kwargs)

    await _encode(Clearing(), ctx, "a")
    assert ctx.cache is not None
    assert (await ctx.cache.stats()).entries == 0


async def test_refused_by_the_limit() -> None:
    """Nothing is computed for a caller without tokens left."""
    engine = FakeEncoder()
    with pytest.raises(RateLimited):
        await _encode(engine, replace(fake_context(), reserve=Charges(2).reserve), "a")
    assert not engine.embedded


async def test_failed_work_is_not_charged() -> None:
    """What was reserved is given back, and the error is the engine's."""
    engine, charges = FakeEncoder(failure_to_encode=TooManyRequests("full")), Charges()
    with pytest.raises(TooManyRequests):
        await _encode(engine, replace(fake_context(), reserve=charges.reserve), "a")
    assert (charges.reserved, charges.used) == ([3], [0])


async def test_unknown_token() -> None:
    """The engine's error about an input names its place in the request."""
    with pytest.raises(InvalidRequest, match=r"^input\.2: ") as caught:
        await _encode(FakeEncoder(), fake_context(), "a", "a", (1, 1000))
    assert caught.value.param == "input.2"
