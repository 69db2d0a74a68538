"""runtime.events.queues.redis.source: with faults in Redis, on the way to it, and in its settings."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from runtime.errors import SettingsError
from runtime.events.envelope import Envelope
from runtime.events.idempotency.memory import MemoryRecords
from runtime.events.outcome import Ack
from runtime.events.queues.base import BrokerUnavailable, QueueOptions
from runtime.events.queues.redis import connection as redis_connection
from runtime.events.queues.redis.source import RedisSource
from tests.attacks.faults import FAULTS
from tests.support.fakes import until
from tests.support.models import ROOT
from tests.support.redis_queue import (
    PATIENCE,
    Echo,
    Queue,
    all_replies,
    asking,
    fetch,
    own_queue,
    processing,
    run_worker,
)
from tests.support.redis_server import OwnRedis, proxied_redis


@pytest.fixture
async def queue() -> AsyncIterator[Queue]:
    async with own_queue() as made:
        yield made


@pytest.mark.parametrize("url", ["redis://127.0.0.1:no/0", "hunter2@localhost"])
def test_wrong_url(url: str, queue: Queue) -> None:
    """What is no URL is an error at start, with the setting's name and without what it holds."""
    with pytest.raises(SettingsError, match="EVENTS_URL") as caught:
        RedisSource(replace(queue.options, url=url))
    assert "hunter2" not in str(caught.value)


def test_three_streams(queue: Queue) -> None:
    """Work, results and dead letters are not the same stream: answers would be taken for work."""
    with pytest.raises(SettingsError, match="must be three different streams"):
        RedisSource(replace(queue.options, results=queue.options.stream))


async def test_password(tmp_path: Path) -> None:
    """With it all works; a wrong one is an error at start; neither is ever shown."""
    own = OwnRedis(tmp_path / "redis", "hunter2")
    try:
        queue = Queue("x", own.url)
        source = await queue.source()
        queue.add()
        assert len(await fetch(source)) == 1
        assert "hunter2" not in source.name
        wrong = RedisSource(replace(queue.options, url=own.url.replace("hunter2", "hunter3")))
        with pytest.raises(SettingsError, match="EVENTS_URL") as caught:
            await wrong.open()
        assert "hunter" not in str(caught.value)
        await wrong.close()
        await queue.close()
    finally:
        own.kill()


WORKER = "+@stream +@scripting +exists +pexpire +type +time +zadd +zrem +zrange +zrangebyscore +zscore"
SUBMITTER = "+xadd +xread +unlink +type +exists"
DOCUMENTED = " ".join((ROOT / "docs" / "events-redis.md").read_text().split())


async def test_permissions(tmp_path: Path) -> None:
    """Users with no more rights than the documentation names do all there is to do; with less, opening says so."""
    own = OwnRedis(tmp_path / "redis")
    try:
        queue = Queue("x", own.url)
        for name, rights in (("worker", WORKER), ("submitter", SUBMITTER), ("nobody", "-@all")):
            keys = ["~x:*", "~warmstart:reply:*"]
            queue.server.execute_command("ACL", "SETUSER", name, "on", ">secret", "-@all", *keys, *rights.split())
        urls = {name: own.url.replace("//", f"//{name}:secret@") for name in ("worker", "submitter", "nobody")}
        source = await queue.source(url=urls["worker"])
        submitter = await queue.submitter(url=urls["submitter"])
        echo = processing(Echo())
        for data in ({"chunks": 2}, {"poison": True}):
            answer = await submitter.submit(asking(data, stream=True), wait=True)
            await run_worker(source, echo, lambda: queue.left() == 0)
            assert (await all_replies(answer))[-1].kind == ("error" if "poison" in data else "result")
        assert await source.lag() == 0
        queue.add()
        (delivery,) = await fetch(source)
        await delivery.extend()
        await source.close()
        assert queue.pending()[delivery.envelope().id][0] == "waiting"
        with pytest.raises(SettingsError, match="EVENTS_URL"):
            await queue.source(url=urls["nobody"])
        assert WORKER in DOCUMENTED
        assert SUBMITTER in DOCUMENTED
        await queue.close()
    finally:
        own.kill()


async def test_nobody_answers() -> None:
    """Where there is no Redis, that is known at once."""
    source = RedisSource(QueueOptions("redis://127.0.0.1:1/0", "a", "g", "b", "c"))
    with pytest.raises(BrokerUnavailable, match="Redis"):
        await source.open()
    await source.close()


async def test_a_bad_line(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the line does, nothing hangs and nothing is lost: each message is answered once, when it is mended."""
    async with proxied_redis() as (proxy, url):
        source = await queue.source(url=url)
        for number, fault in enumerate(FAULTS, start=1):
            queue.add()
            (delivery,) = await fetch(source)
            fault(proxy)
            monkeypatch.setattr(redis_connection, "_SECONDS", 0.1)
            for call in (
                delivery.settle(delivery.envelope(), Ack({"n": number})),
                delivery.extend(),
                source.fetch(1, 0.1),
                source.lag(),
                source.open(),
            ):
                async with asyncio.timeout(PATIENCE):
                    with pytest.raises(BrokerUnavailable):
                        await call
            monkeypatch.undo()
            proxy.heal()
            proxy.cut()
            await source.open()
            await delivery.settle(delivery.envelope(), Ack({"n": number}))
            assert [json.loads(one["data"])["n"] for one in queue.results()] == list(range(1, number + 1)), fault
        assert queue.left() == 0
        await source.close()


@pytest.mark.parametrize("answer", [b":x\r\n", b"*x\r\n", b"%1\r\n*0\r\n:1\r\n", b"?\r\n", b"-ERR no\r\n"])
async def test_nonsense(queue: Queue, answer: bytes) -> None:
    """What is no answer of Redis's is as good as none."""
    async with proxied_redis() as (proxy, url):
        source = await queue.source(url=url)
        proxy.down.garble = lambda piece: answer
        with pytest.raises(BrokerUnavailable):
            await source.fetch(1, 0)
        await source.close()


async def test_cut_off_for_longer_than_its_lease(queue: Queue) -> None:
    """Another takes over meanwhile; what the first says when it is back is of no effect."""
    async with proxied_redis() as (proxy, url):
        source, other = await queue.source(url=url, ack_seconds=0.3), await queue.source(ack_seconds=0.3)
        records, echo = MemoryRecords(), Echo()
        ids = [queue.add({"n": number}) for number in range(6)]
        held = await fetch(source, 3)
        proxy.refuse = True
        proxy.cut()
        await asyncio.wait_for(run_worker(other, processing(echo, records), lambda: queue.left() == 0), PATIENCE)
        for delivery in held:
            with pytest.raises(BrokerUnavailable):
                await delivery.settle(delivery.envelope(), Ack({"late": True}))
        proxy.heal()
        await source.open()
        for delivery in held:
            with pytest.raises(BrokerUnavailable, match="another worker"):
                await delivery.extend()
            await delivery.settle(delivery.envelope(), Ack({"late": True}))
        assert sorted(one["Warmstart-Id"] for one in queue.results()) == sorted(ids)
        assert not any("late" in one["data"] for one in queue.results())
        await source.close()


async def test_redis_is_killed(tmp_path: Path) -> None:
    """kill -9 of Redis five times under load, started again on its append-only file: each message is answered once."""
    own = OwnRedis(tmp_path / "redis")
    queue = Queue("x", own.url)
    submitter = await queue.submitter()
    records, echo, sent = MemoryRecords(), Echo(), 300
    read: Counter[str] = Counter()

    async def persist(source: RedisSource) -> None:
        """A worker that outlives its broker."""
        while sum(read.values()) < sent:
            with suppress(BrokerUnavailable):
                await source.open()
                await run_worker(source, processing(echo, records), lambda: sum(read.values()) >= sent)
            await asyncio.sleep(0.01)

    async def submit() -> None:
        for number in range(sent):
            work = asking({"n": number}, f"id-{number}")
            while True:
                with suppress(BrokerUnavailable):
                    await submitter.submit(work, wait=False)
                    break
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.002)  # so that there is work all the time

    async def read_results() -> None:
        """What a reader of the results sees, who goes on where it was."""
        last: Any = "0"
        client = redis.asyncio.Redis.from_url(own.url)
        while sum(read.values()) < sent:
            try:
                found = await client.xread({queue.options.results: last}, count=50, block=50)
            except redis.RedisError:
                await asyncio.sleep(0.01)
                continue
            for entry in found[0][1] if found else ():
                last = entry[0]
                read[entry[1][b"Warmstart-Id"].decode()] += 1
        await client.aclose()

    sources = [RedisSource(replace(queue.options, ack_seconds=0.5)) for _ in range(2)]
    tasks = [asyncio.create_task(one) for one in (submit(), read_results(), *map(persist, sources))]
    try:
        for kill in range(5):
            await until(lambda kill=kill: sum(read.values()) >= sent * (kill + 0.5) / 6, PATIENCE)
            own.kill()
            await asyncio.to_thread(own.start)
        async with asyncio.timeout(3 * PATIENCE):
            await asyncio.gather(*tasks)
        assert read == Counter(f"id-{number}" for number in range(sent))
        assert Counter(one["Warmstart-Id"] for one in queue.results()) == read
        assert queue.pending() == {}
        for source in sources:
            await source.close()
        await queue.close()
    finally:
        for task in tasks:
            task.cancel()
        own.kill()


async def test_two_workers_many_messages(queue: Queue) -> None:
    """Three thousand small messages through two workers, counted: each is answered once."""
    submitter = await queue.submitter()
    ids = [f"id-{number}" for number in range(3000)]
    for start in range(0, 3000, 100):
        works: Sequence[Envelope] = [asking({}, id) for id in ids[start : start + 100]]
        await asyncio.gather(*(submitter.submit(work, wait=False) for work in works))
    echo = Echo()
    workers = [run_worker(await queue.source(), processing(echo), lambda: queue.left() == 0) for _ in range(2)]
    await asyncio.wait_for(asyncio.gather(*workers), 3 * PATIENCE)
    assert echo.calls == Counter(ids)
    assert Counter(one["Warmstart-Id"] for one in queue.results()) == Counter(ids)
