"""runtime.events.queues.redis.source: on a real Redis."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from runtime.errors import Draining, InternalError, InvalidRequest, SettingsError
from runtime.events.envelope import encode
from runtime.events.idempotency.memory import MemoryRecords
from runtime.events.outcome import Ack, Reject, Retry
from runtime.events.queues.base import BrokerUnavailable, Reply
from runtime.events.queues.redis import source as redis_streams
from runtime.events.queues.redis.source import RedisSource, RedisSubmitter
from tests.support.fakes import until
from tests.support.redis_queue import (
    PATIENCE,
    Echo,
    Queue,
    all_replies,
    asking,
    fetch,
    handle,
    own_queue,
    processing,
    run_worker,
)
from tests.support.redis_server import proxied_redis

SLOW = InternalError("once more")


@pytest.fixture
async def queue() -> AsyncIterator[Queue]:
    async with own_queue() as made:
        yield made


# From end to end


async def test_submitted_and_answered(queue: Queue) -> None:
    """The answer comes to whoever submitted, and once to the results; nothing of the message is left."""
    source, submitter = await queue.source(), await queue.submitter()
    work = asking({"é": [1, 2.5]}, traceparent="00-1-2-01", deadline=4e9)
    answer = await submitter.submit(work, wait=True)
    (delivery,) = await fetch(source)
    found = delivery.envelope()
    assert found == replace(work, source=f"redis:{queue.options.stream}", reply_to=found.reply_to)
    assert delivery.attempt == 1
    assert isinstance(await handle(processing(Echo()), delivery), Ack)
    result = {"echo": {"é": [1, 2.5]}, "call": 1}
    assert await all_replies(answer) == [Reply("result", result)]
    expected = {
        "Warmstart-Id": work.id,
        "Warmstart-Operation": "echo",
        "traceparent": "00-1-2-01",
        "Warmstart-Kind": "result",
        "Warmstart-Attempt": "1",
        "data": encode(result).decode(),
    }
    assert queue.results() == queue.answer(work.id) == [expected]
    assert (queue.left(), queue.pending(), queue.dead()) == (0, {}, [])
    assert 86_000 < queue.server.ttl(f"{queue.options.results}:{work.id}") <= 86_400
    assert not queue.server.exists(found.reply_to or "")


async def test_a_message_of_anybody(queue: Queue) -> None:
    """A payload in the field data is all that is needed; the answer is known by the id that Redis gave."""
    source = await queue.source()
    id = queue.add({"n": 5})
    await handle(processing(Echo()), (await fetch(source))[0])
    assert json.loads(queue.answer(id)[0]["data"]) == {"echo": {"n": 5}, "call": 1}
    assert queue.answer(id)[0]["Warmstart-Id"] == id


async def test_sent_before_anybody_works(queue: Queue) -> None:
    """What was sent before the group was made is worked on."""
    id = queue.add()
    assert [one.envelope().id for one in await fetch(await queue.source())] == [id]


async def test_not_waiting(queue: Queue) -> None:
    """Without waiting there is no reply stream and nothing to read."""
    submitter = await queue.submitter()
    assert await all_replies(await submitter.submit(asking({}), wait=False)) == []
    assert (await fetch(await queue.source()))[0].envelope().reply_to is None


async def test_more_calls_than_connections(queue: Queue) -> None:
    """Submitters and workers with hundreds of messages at once wait for a connection, and nothing fails."""
    source, submitter = await queue.source(), await queue.submitter()
    answers = await asyncio.gather(*(submitter.submit(asking({"n": n}), wait=True) for n in range(250)))
    replies = asyncio.gather(*(all_replies(answer) for answer in answers))
    processor = processing(Echo())
    deliveries = await source.fetch(250, 1)
    assert len(deliveries) == 250
    await asyncio.gather(*(handle(processor, delivery) for delivery in deliveries))
    assert sorted(reply.body["echo"]["n"] for [reply] in await replies) == [*range(250)]


async def test_chunks(queue: Queue) -> None:
    """They come in order, numbered, before the answer, and are gone with it; only to who asked for them."""
    source, submitter = await queue.source(), await queue.submitter()
    processor = processing(Echo())
    answer = await submitter.submit(asking({"chunks": 200}, stream=True), wait=True)
    await handle(processor, (await fetch(source))[0])
    *chunks, last = await all_replies(answer)
    assert chunks == [Reply("chunk", {"piece": number}, number, 1) for number in range(200)]
    assert last.kind == "result"
    answer = await submitter.submit(asking({"chunks": 200}), wait=True)
    await handle(processor, (await fetch(source))[0])
    assert [reply.kind for reply in await all_replies(answer)] == ["result"]


async def test_a_reply_stream_is_bounded(queue: Queue) -> None:
    """What nobody reads does not grow for ever, and expires."""
    reply_to = f"{queue.options.stream.removesuffix('requests')}reply"
    queue.add({"chunks": 12_000}, Warmstart_Reply_To=reply_to, Warmstart_Stream="true")
    await handle(processing(Echo()), (await fetch(await queue.source()))[0])
    assert 10_000 <= queue.server.xlen(reply_to) < 10_300
    assert queue.server.xrevrange(reply_to, count=1)[0][1][b"Warmstart-Kind"] == b"result"
    assert queue.server.ttl(reply_to) > 0


async def test_a_reply_stream_that_is_none(queue: Queue) -> None:
    """Where its name is that of something else, chunks fail and the answer goes where all go."""
    reply_to = f"{queue.options.stream.removesuffix('requests')}reply"
    queue.server.set(reply_to, "a string")
    id = queue.add(Warmstart_Reply_To=reply_to)
    (delivery,) = await fetch(await queue.source())
    with pytest.raises(BrokerUnavailable, match="WRONGTYPE"):
        await delivery.send_chunk(delivery.envelope(), 0, {})
    await handle(processing(Echo()), delivery)
    assert len(queue.answer(id)) == len(queue.results()) == 1
    assert queue.left() == 0


async def test_a_huge_message(queue: Queue) -> None:
    """Eight megabytes go there and back."""
    source, submitter = await queue.source(), await queue.submitter()
    answer = await submitter.submit(asking({"text": "é" * 4 * 2**20}), wait=True)
    await handle(processing(Echo()), (await fetch(source))[0])
    assert (await all_replies(answer))[0].body == {"echo": {"text": "é" * 4 * 2**20}, "call": 1}


async def test_many_wait(queue: Queue) -> None:
    """More submissions than may hold a connection all get their own answers."""
    source, submitter = await queue.source(), await queue.submitter()
    answers = [await submitter.submit(asking({"n": number}), wait=True) for number in range(150)]
    worker = asyncio.create_task(run_worker(source, processing(Echo()), lambda: False))
    replies = await asyncio.gather(*(all_replies(answer) for answer in answers))
    worker.cancel()
    assert [reply.body["echo"]["n"] for (reply,) in replies] == list(range(150))


# What is wrong with a message


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"other": "x"}, "field of this name"),
        ({"data": "{"}, "not JSON"),
        ({"data": b"\xff\xfe"}, "not UTF-8"),
        ({"data": "[1]"}, "JSON object"),
        ({"data": "{}", "Warmstart-Reply-To": "warmstart:limits:1:x"}, "EVENTS_REPLY_PREFIXES"),
        ({"data": "{}", "Warmstart-Deadline": b"\xff"}, "Unix time"),
        ({"data": "{}", "Warmstart-Id": b"\xff\x00"}, "id: use 1 to 256"),
        ({"data": "{}", "Warmstart-Id": "x" * 257}, "id: use 1 to 256"),
        ({"data": "[]"} | {f"field {number}": "x" for number in range(20_000)}, "JSON object"),
    ],
)
async def test_malformed(queue: Queue, fields: dict[str, Any], says: str) -> None:
    """It is answered with its error and becomes a dead letter with the reason, and nothing is left of it."""
    id = queue.server.xadd(queue.options.stream, fields).decode()
    outcome = await handle(processing(Echo()), (await fetch(await queue.source()))[0])
    assert isinstance(outcome, Reject)
    (answer,) = queue.results()
    assert says in json.loads(answer["data"])["error"]["message"]
    assert answer["Warmstart-Kind"] == "error"
    assert queue.answer(answer["Warmstart-Id"]) == [answer]
    if "Warmstart-Id" not in fields:
        assert answer["Warmstart-Id"] == id
    ((_, dead_letter),) = queue.server.xrange(queue.options.dead)
    assert says.encode() in dead_letter[b"Warmstart-Reason"]
    assert dead_letter[b"Warmstart-Attempt"] == b"1"
    kept = {name.encode(): value if isinstance(value, bytes) else value.encode() for name, value in fields.items()}
    kept.pop(b"Warmstart-Id", None)
    assert len(dead_letter) <= 1010
    assert set(list(kept.items())[:500]) <= set(dead_letter.items())
    assert (queue.left(), queue.pending()) == (0, {})


async def test_poison(queue: Queue) -> None:
    """A message that always fails is a dead letter after the last delivery allowed, and holds up no other."""
    echo = Echo()
    poison = queue.add({"poison": True})
    others = [queue.add({"n": number}) for number in range(20)]
    await asyncio.wait_for(
        run_worker(await queue.source(), processing(echo, MemoryRecords()), lambda: queue.left() == 0), PATIENCE
    )
    assert echo.calls == Counter({poison: 5} | dict.fromkeys(others, 1))
    (dead_letter,) = queue.dead()
    assert (dead_letter["Warmstart-Id"], dead_letter["Warmstart-Attempt"]) == (poison, "5")
    assert json.loads(dead_letter["data"]) == {"poison": True}
    assert dead_letter["Warmstart-Reason"].startswith("internal_error")
    assert queue.answer(poison)[0]["Warmstart-Kind"] == "error"
    assert len(queue.results()) == 21


# The same again


@pytest.mark.parametrize("records", [True, False])
async def test_duplicates(queue: Queue, records: bool) -> None:
    """The same work sent three times is in the results once, and each who sent it has an answer; known, it is the
    same one."""
    source, submitter = await queue.source(), await queue.submitter()
    echo = Echo()
    work = asking({"n": 1})
    answers = [await submitter.submit(work, wait=True) for _ in range(3)]
    processor = processing(echo, MemoryRecords() if records else None)
    await run_worker(source, processor, lambda: queue.left() == 0)
    replies = [await all_replies(answer) for answer in answers]
    assert [reply.kind for (reply,) in replies] == ["result"] * 3
    assert {reply.body["call"] for (reply,) in replies} == ({1} if records else {1, 2, 3})
    assert [json.loads(one["data"])["call"] for one in queue.results()] == [1]
    assert queue.answer(work.id) == queue.results()


async def test_the_same_id_for_other_work(queue: Queue) -> None:
    """The second is told so and becomes a dead letter; the first answer stands."""
    source, submitter = await queue.source(), await queue.submitter()
    work = asking({"n": 1})
    answers = [await submitter.submit(replace(work, data={"n": number}), wait=True) for number in (1, 2)]
    await run_worker(source, processing(Echo(), MemoryRecords()), lambda: queue.left() == 0)
    (first,), (second,) = [await all_replies(answer) for answer in answers]
    assert first.body == {"echo": {"n": 1}, "call": 1}
    assert (second.kind, second.body["error"]["code"]) == ("error", "idempotency_mismatch")
    assert json.loads(queue.answer(work.id)[0]["data"]) == first.body
    assert len(queue.results()) == len(queue.dead()) == 1


async def test_settled_twice(queue: Queue) -> None:
    """Said again, because the answer to it was lost, it has no effect: not on results, not on dead letters."""
    source = await queue.source()
    queue.add()
    queue.add()
    first, second = await fetch(source, 2)
    for _ in range(2):
        await first.settle(first.envelope(), Ack({"a": 1}))
        await second.settle(second.envelope(), Reject(InvalidRequest("no")))
    assert [one["Warmstart-Kind"] for one in queue.results()] == ["result", "error"]
    assert len(queue.dead()) == 1
    await first.settle(first.envelope(), Retry(0, SLOW))
    assert await source.fetch(1, 0) == []


# Whose it is


async def test_back_pressure(queue: Queue) -> None:
    """No more is taken than asked for, whether new, abandoned or due; the rest stays with Redis."""
    source, other = await queue.source(), await queue.source()
    for number in range(9):
        queue.add({"n": number})
    held = await fetch(source, 3)
    assert len(await source.fetch(2, 0)) == 2
    for delivery in held:
        queue.abandon(delivery)
    assert len(await other.fetch(2, 0)) == 2
    for delivery in held:
        await delivery.settle(delivery.envelope(), Retry(0, SLOW))  # two of them are another's by now
    assert len(await other.fetch(1, 0)) == 1
    assert len(queue.pending()) == 5
    assert len(await other.fetch(100, 0)) == 4


async def test_extended(queue: Queue) -> None:
    """What is extended stays its worker's, and that is no delivery."""
    source, other = await queue.source(), await queue.source()
    id = queue.add()
    (delivery,) = await fetch(source)
    queue.abandon(delivery)
    for _ in range(3):
        await delivery.extend()
    assert await other.fetch(1, 0) == []
    assert queue.pending() == {id: (source.consumer, 1)}


async def test_abandoned(queue: Queue) -> None:
    """What is not extended in time goes to another, before new work, and its worker finds out; of two answers the first
    stands, and what the late one wants otherwise is of no effect."""
    source, other = await queue.source(), await queue.source()
    id = queue.add()
    (late,) = await fetch(source)
    queue.add()
    queue.abandon(late, 29)
    assert len(await other.fetch(1, 0)) == 1  # the new one
    queue.abandon(late)
    (mine,) = await other.fetch(1, 0)
    assert (mine.envelope().id, mine.attempt) == (id, 2)
    with pytest.raises(BrokerUnavailable, match="another worker"):
        await late.extend()
    await late.settle(late.envelope(), Retry(0, SLOW))
    assert await source.fetch(1, 0) == []
    await mine.extend()
    await mine.settle(mine.envelope(), Ack({"by": "other"}))
    await late.settle(late.envelope(), Ack({"by": "late"}))
    assert [json.loads(one["data"]) for one in queue.results()] == [{"by": "other"}]


async def test_abandoned_among_many(queue: Queue) -> None:
    """It is found however much others are at work on before it."""
    source, other = await queue.source(), await queue.source()
    ids = [queue.add() for _ in range(100)]
    held = await fetch(source, 100)
    queue.abandon(held[90])
    found = [one for _ in range(12) for one in await other.fetch(1, 0)]
    assert [one.envelope().id for one in found] == [ids[90]]


async def test_the_late_one_may_be_first(queue: Queue) -> None:
    """An answer counts though its worker was given up; the other one's is then the second."""
    source, other = await queue.source(), await queue.source()
    queue.add()
    (late,) = await fetch(source)
    queue.abandon(late)
    (mine,) = await fetch(other)
    await late.settle(late.envelope(), Ack({"by": "late"}))
    await mine.settle(mine.envelope(), Ack({"by": "other"}))
    assert [json.loads(one["data"]) for one in queue.results()] == [{"by": "late"}]


async def test_given_to_the_same_again(queue: Queue) -> None:
    """A worker that was held up for long gets its own message anew; the first delivery of it is over."""
    source = await queue.source()
    queue.add()
    (first,) = await fetch(source)
    queue.abandon(first)
    (second,) = await fetch(source)
    assert second.attempt == 2
    with pytest.raises(BrokerUnavailable):
        await first.extend()
    await second.extend()


async def test_one_stops_in_the_middle(queue: Queue) -> None:
    """A worker stops and never settles: another does its work, with one result and nothing of it done by halves."""
    source, other = await queue.source(ack_seconds=0.3), await queue.source(ack_seconds=0.3)
    echo = Echo()
    ids = [queue.add({"n": number}) for number in range(10)]
    stopped = await fetch(source, 4)
    await asyncio.wait_for(run_worker(other, processing(echo), lambda: queue.left() == 0), PATIENCE)
    assert echo.calls == Counter(ids)
    assert sorted(one["Warmstart-Id"] for one in queue.results()) == sorted(ids)
    assert {one["Warmstart-Id"] for one in queue.results() if one["Warmstart-Attempt"] == "2"} == {
        delivery.envelope().id for delivery in stopped
    }


# Once more, later


async def test_later(queue: Queue) -> None:
    """What is to come again comes when its time has come, to any worker, with the attempts counted; abandoned work is
    not looked for among it."""
    source, other = await queue.source(ack_seconds=0.05), await queue.source(ack_seconds=0.05)
    first, second = queue.add(), queue.add()
    soon, put_off = await fetch(source, 2)
    await soon.settle(soon.envelope(), Retry(0.4, SLOW))
    await put_off.settle(put_off.envelope(), Retry(3600, SLOW))
    before = queue.server.time()
    (again,) = await fetch(other)
    after = queue.server.time()
    assert (again.envelope().id, again.attempt) == (first, 2)
    assert (after[0] - before[0]) + (after[1] - before[1]) / 1e6 > 0.2
    assert queue.pending() == {first: (other.consumer, 2), second: ("waiting", 1)}
    await again.settle(again.envelope(), Ack({}))
    assert await other.fetch(1, 0.3) == []
    assert queue.pending() == {second: ("waiting", 1)}
    with pytest.raises(BrokerUnavailable):
        await put_off.extend()  # under way when it was put off
    assert queue.pending() == {second: ("waiting", 1)}
    queue.server.zadd(other.delayed, {second: 0})
    (again,) = await fetch(source)
    assert (again.envelope().id, again.attempt) == (second, 2)


async def test_later_outlives_its_worker(queue: Queue) -> None:
    """What a worker put off comes though that worker is gone; due work goes before new work."""
    source = await queue.source()
    first = queue.add()
    (delivery,) = await fetch(source)
    await delivery.settle(delivery.envelope(), Retry(0, SLOW))
    await source.connection.close()
    second = queue.add()
    found = await fetch(await queue.source(), 2)
    assert [(one.envelope().id, one.attempt) for one in found] == [(first, 2), (second, 1)]


async def test_given_back(queue: Queue) -> None:
    """A worker that ends gives back what it has not settled: others have it at once, and it was no delivery."""
    source, other = await queue.source(), await queue.source()
    id = queue.add()
    delivery = (await fetch(source))[0]
    await delivery.settle(delivery.envelope(), Retry(0, Draining("it ends")))
    delivery = (await fetch(source))[0]
    assert delivery.attempt == 2
    await source.close()
    (again,) = await fetch(other)
    assert (again.envelope().id, again.attempt) == (id, 2)
    assert queue.consumers() == {other.consumer, "waiting"}


@pytest.mark.parametrize("turns", range(0, 30, 3))
async def test_cancelled_while_it_waits(queue: Queue, turns: int) -> None:
    """What came to a fetch that was cancelled is not lost, not late, and not counted."""
    source, other = await queue.source(), await queue.source()
    task = asyncio.create_task(source.fetch(4, 10))
    for _ in range(turns):
        await asyncio.sleep(0)
    id = queue.add()
    for _ in range(turns):
        await asyncio.sleep(0)
    held = task.result() if task.done() else []
    task.cancel()
    await asyncio.wait({task})
    if not held:
        assert [(one.envelope().id, one.attempt) for one in await fetch(other)] == [(id, 1)]


async def test_cancelled_while_it_comes(queue: Queue) -> None:
    """A message that is on its way to a fetch when that is cancelled goes to another, at once and not counted."""
    async with proxied_redis() as (proxy, url):
        source, other = await queue.source(url=url), await queue.source()
        proxy.down.garble = lambda piece: b"" if b"never arrives" in piece else piece
        fetching = asyncio.create_task(source.fetch(4, 10))
        id = queue.add({"this": "never arrives"})
        await until(queue.pending)
        assert queue.pending() == {id: (source.consumer, 1)}
        fetching.cancel()
        await asyncio.wait({fetching})
        assert [(one.envelope().id, one.attempt) for one in await other.fetch(1, 0)] == [(id, 1)]
        await source.close()


async def test_delivered_to_a_broken_line(queue: Queue) -> None:
    """What was delivered and never arrived comes again once the worker is back, and was no delivery."""
    async with proxied_redis() as (proxy, url):
        source = await queue.source(url=url)
        proxy.down.garble = lambda piece: b"" if b"never arrives" in piece else piece
        fetching = asyncio.create_task(source.fetch(4, 10))
        id = queue.add({"this": "never arrives"})
        await until(queue.pending)
        proxy.heal()
        proxy.down.cut_after = 0
        proxy.cut()
        proxy.refuse = True
        with pytest.raises(BrokerUnavailable):
            await fetching
        assert queue.pending() == {id: (source.consumer, 1)}
        proxy.heal()
        await source.open()
        assert [(one.envelope().id, one.attempt) for one in await fetch(source)] == [(id, 1)]
        await source.close()


async def test_held_is_not_given_back(queue: Queue) -> None:
    """To connect anew takes nothing from under those that are at work."""
    source = await queue.source()
    id = queue.add()
    (delivery,) = await fetch(source)
    await source.open()
    await delivery.extend()
    assert queue.pending() == {id: (source.consumer, 1)}
    del delivery
    gc.collect()
    await source.open()
    assert queue.pending() == {id: ("waiting", 0)}


# What others do in Redis


async def test_deleted(queue: Queue) -> None:
    """What somebody deletes is not delivered again, and whoever works on it finds out; the rest goes on."""
    source = await queue.source()
    ids = [queue.add() for _ in range(4)]
    working, delayed, abandoned, _ = await fetch(source, 4)
    await delayed.settle(delayed.envelope(), Retry(0, SLOW))
    queue.abandon(abandoned)
    queue.server.xdel(queue.options.stream, *ids[:3])
    with pytest.raises(BrokerUnavailable, match="deleted"):
        await working.extend()
    assert await source.fetch(4, 0) == []
    assert set(queue.pending()) == {ids[3]}


async def test_trimmed(queue: Queue) -> None:
    """What is trimmed before anybody took it is gone; what comes after it is delivered."""
    source = await queue.source()
    for _ in range(5):
        queue.add()
    queue.server.xtrim(queue.options.stream, maxlen=0, approximate=False)
    id = queue.add()
    assert [one.envelope().id for one in await fetch(source)] == [id]


async def test_the_group_is_removed(queue: Queue) -> None:
    """Without its group, its stream, or anything at all, work stops until the queue is opened anew; then it goes on."""
    source = await queue.source()
    for remove in (
        lambda: queue.server.xgroup_destroy(queue.options.stream, queue.options.group),
        lambda: queue.server.delete(queue.options.stream),
    ):
        remove()
        with pytest.raises(BrokerUnavailable, match="NOGROUP"):
            await source.fetch(1, 0)
        await source.open()
        id = queue.add()
        (delivery,) = await fetch(source)
        assert delivery.envelope().id == id
        await delivery.settle(None, Reject(InvalidRequest("no")))


async def test_nothing_is_made_unasked(queue: Queue) -> None:
    """Without leave to make what is missing, that is an error which names it."""
    for opened in (
        RedisSource(replace(queue.options, create=False)),
        RedisSubmitter(replace(queue.options, create=False)),
    ):
        with pytest.raises(SettingsError, match=queue.options.stream):
            await opened.open()
        await opened.close()
    assert not queue.server.exists(queue.options.stream)
    await queue.source()
    await queue.source(create=False)


@pytest.mark.parametrize("name", ["stream", "results", "dead"])
async def test_another_kind_of_thing(queue: Queue, name: str) -> None:
    """Where something else has the name of a stream, that is an error at start which says so."""
    queue.server.set(getattr(queue.options, name), "x")
    for opened in (RedisSource(queue.options), RedisSubmitter(queue.options)):
        with pytest.raises(
            SettingsError, match=f"{name if name != 'stream' else 'requests'} is not a stream but a string"
        ):
            await opened.open()
        await opened.close()


async def test_results_that_cannot_be_written(queue: Queue) -> None:
    """Where results or dead letters have no room, nothing is let go; once they have, each is there once."""
    source = await queue.source()
    queue.add()
    (delivery,) = await fetch(source)
    for name in (queue.options.results, queue.options.dead):
        queue.server.set(name, "in the way")
        with pytest.raises(BrokerUnavailable, match="WRONGTYPE"):
            await delivery.settle(delivery.envelope(), Reject(InvalidRequest("no")))
        assert queue.left() == len(queue.pending()) == 1
        queue.server.delete(name)
    await delivery.settle(delivery.envelope(), Reject(InvalidRequest("no")))
    assert (len(queue.results()), len(queue.dead()), queue.left()) == (1, 1, 0)


async def test_lag(queue: Queue) -> None:
    """What nobody has taken yet is counted, also where Redis itself cannot tell any more."""
    source = await queue.source()
    assert await source.lag() == 0
    ids = [queue.add() for _ in range(7)]
    assert await source.lag() == 7
    held = await fetch(source, 3)
    assert await source.lag() == 4
    queue.server.xdel(queue.options.stream, ids[5])
    assert queue.server.xinfo_groups(queue.options.stream)[0]["lag"] is None
    assert await source.lag() == 3
    await held[0].settle(held[0].envelope(), Ack({}))
    assert await source.lag() == 3
    queue.server.xgroup_destroy(queue.options.stream, queue.options.group)
    assert await source.lag() is None


async def test_old_results_go(queue: Queue) -> None:
    """Results are trimmed by their age as new ones come; an answer of its own expires."""
    source = await queue.source(results_seconds=0.2)
    old = queue.server.time()[0] * 1000 - 5000
    for number in range(300):
        queue.server.xadd(queue.options.results, {"data": "old"}, id=f"{old}-{number}")
    id = queue.add()
    await handle(processing(Echo()), (await fetch(source))[0])
    assert 1 <= len(queue.results()) <= 101  # Redis drops whole nodes of a hundred
    await until(lambda: not queue.answer(id), PATIENCE)


async def test_names_of_consumers(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are gone and have nothing are forgotten; never one that has work, whoever looks."""
    idle, busy = await queue.source(), await queue.source()
    queue.add()
    queue.server.xgroup_createconsumer(queue.options.stream, queue.options.group, idle.consumer)
    held = await fetch(busy)
    monkeypatch.setattr(redis_streams, "_IDLE_CONSUMER_SECONDS", 0.0)
    async with asyncio.timeout(PATIENCE):
        while idle.consumer in queue.consumers():
            await (await queue.source()).close()
    assert queue.consumers() == {busy.consumer}
    await held[0].extend()
