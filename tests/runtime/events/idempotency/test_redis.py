"""runtime.events.idempotency.redis: a bad line to Redis, and what is left there."""

from __future__ import annotations

import asyncio

import pytest
import redis as client

from runtime.events.idempotency.records import Done, InProgress, RecordsUnavailable, Started
from runtime.events.idempotency.redis import RedisRecords
from runtime.storage.redis import SharedRedis
from tests.attacks.faults import FAULTS
from tests.support.redis_server import REDIS_URL, own_names, proxied_redis

PATIENCE = 15.0


async def test_a_bad_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the line does, a call answers rightly or fails in time; once it is mended, records are as they were."""
    with own_names() as prefix:
        async with proxied_redis() as (proxy, url):
            clock = 0.0
            records = RedisRecords(SharedRedis(url, lambda: clock), prefix)
            for fault in FAULTS:
                name = fault.__name__
                assert await records.begin(f"done {name}", "f", "a", 3600) == Started(0)
                assert await records.complete(f"done {name}", "a", b"r", 3600)
                assert await records.begin(f"running {name}", "f", "a", 3600) == Started(0)
                fault(proxy)
                monkeypatch.setattr("runtime.storage.redis._SLICES", 2)
                for call in (
                    records.begin(f"done {name}", "f", "b", 3600),
                    records.renew(f"running {name}", "a", 3600),
                    records.complete(f"running {name}", "b", b"not its holder", 3600),
                    records.release(f"running {name}", "b"),
                ):
                    async with asyncio.timeout(PATIENCE):
                        with pytest.raises(RecordsUnavailable, match="Redis"):
                            await call
                    clock += 1
                monkeypatch.undo()
                proxy.heal()
                proxy.cut()
                assert await records.begin(f"done {name}", "f", "b", 3600) == Done(b"r"), name
                assert isinstance(await records.begin(f"running {name}", "f", "b", 3600), InProgress), name
                assert await records.complete(f"running {name}", "a", b"late", 3600), name
            await records.close()


async def test_lost_answers() -> None:
    """The server did it and its answer was lost: asked again, it says the same."""
    with own_names() as prefix:
        async with proxied_redis() as (proxy, url):
            clock = 0.0
            records = RedisRecords(SharedRedis(url, lambda: clock), prefix)
            for call, answer in (
                (lambda: records.begin("k", "f", "a", 3600), Started(0)),
                (lambda: records.renew("k", "a", 3600), True),
                (lambda: records.complete("k", "a", b"r", 3600), True),
                (lambda: records.release("k", "a"), None),
            ):
                proxy.down.stall_after = 0
                with pytest.raises(RecordsUnavailable):
                    await call()
                proxy.heal()
                clock += 1
                assert await call() == answer
            assert await records.begin("k", "f", "b", 3600) == Done(b"r")
            await records.close()


async def test_nothing_stays_for_ever() -> None:
    """Every key has an expiry: a day past its lease, or as long as the result is kept."""
    with own_names() as prefix, client.Redis.from_url(REDIS_URL) as server:
        records = RedisRecords(SharedRedis(REDIS_URL), prefix)

        def left(key: str) -> int:
            return round(server.ttl(prefix + key), -2)

        await records.begin("k", "f", "a", 1000)
        assert left("k") == 87_400
        await records.renew("k", "a", 5000)
        assert left("k") == 91_400
        await records.complete("k", "a", b"r", 7000)
        assert left("k") == 7000
        await records.begin("lapsed", "f", "a", 0.001)
        while not isinstance(await records.begin("lapsed", "f", "b", 1000), Started):
            pass
        await records.release("lapsed", "b")
        assert left("lapsed") == 86_400
        assert await records.begin("lapsed", "f", "c", 1000) == Started(1)
        await records.close()
