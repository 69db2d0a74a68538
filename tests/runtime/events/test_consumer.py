"""The worker's loop, on a queue in memory and on operations that are a few lines."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from runtime import cancellation
from runtime.errors import InvalidRequest, SettingsError, TooManyRequests
from runtime.events import consumer as consumer_module
from runtime.events import processor as process_module
from runtime.events.consumer import Consumer
from runtime.events.delivery_report import DeliveryReporter
from runtime.events.envelope import Envelope
from runtime.events.idempotency.memory import MemoryRecords
from runtime.events.idempotency.records import Records
from runtime.events.outcome import Policy
from runtime.events.processor import Processor, SendChunk
from runtime.events.queues.base import Delivery
from runtime.telemetry.event_metrics import EventMetrics
from tests.events.memory_queue import MemoryBroker, MemorySource
from tests.support.fakes import until

QUICK = Policy(max_deliveries=3, transient_seconds=0.002, failure_seconds=0.002, max_seconds=0.02)


class Work:
    """An operation that says its payload back; what it does besides, the payload says."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.began: Counter[str] = Counter()
        self.cancelled = 0

    async def __call__(self, envelope: Envelope, send_chunk: SendChunk | None = None) -> Mapping[str, Any]:
        self.began[envelope.id] += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if envelope.data.get("bug"):
            raise RuntimeError("a bug")
        if envelope.data.get("wrong"):
            raise InvalidRequest("wrong")
        if self.began[envelope.id] <= envelope.data.get("busy", 0):
            raise TooManyRequests("busy", retry_after=0.001)
        return {"said": envelope.data, "attempt": envelope.attempt}


async def always() -> None:
    """There is a model."""


class Desk:
    """A consumer and its surroundings."""

    def __init__(self, broker: MemoryBroker, work: Work, records: Records | None = None, **options: Any) -> None:
        self.registry = CollectorRegistry()
        self.source = MemorySource(broker, operation="say")
        self.reporter = DeliveryReporter(self.source.name, ["say"], EventMetrics(self.registry))
        processor = Processor(work, records, QUICK, lease_seconds=broker.ack_seconds)
        settings: dict[str, Any] = {"concurrency": 4, "ready": always, "drain_seconds": 5.0} | options
        self.consumer = Consumer(self.source, processor, self.reporter, **settings)

    def value(self, name: str, **labels: str) -> float | None:
        """A metric's."""
        return self.registry.get_sample_value(f"warmstart:{name}", {"source": self.source.name, **labels})


@asynccontextmanager
async def running(*desks: Desk) -> AsyncIterator[None]:
    """Their consumers at work, stopped afterwards."""
    tasks = [asyncio.create_task(desk.consumer.run()) for desk in desks]
    try:
        yield
    finally:
        for desk in desks:
            desk.consumer.stop()
        await asyncio.gather(*tasks)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "_FETCH_SECONDS", 0.05)
    monkeypatch.setattr(consumer_module, "_FIRST_RECONNECT_PAUSE", 0.005)
    monkeypatch.setattr(consumer_module, "_FIRST_SETTLE_PAUSE", 0.001)
    monkeypatch.setattr(consumer_module, "_LAG_SECONDS", 0.005)
    monkeypatch.setattr(process_module, "_MAX_CONFLICT_SECONDS", 0.01)


async def test_it_holds_no_more_than_it_works_on() -> None:
    """Four at once are held by this worker, the others are left in the queue for whoever has room; all are answered."""
    broker, work = MemoryBroker(), Work()
    work.go.clear()
    for number in range(50):
        broker.put("say", {"n": number}, f"m{number}")
    desk = Desk(broker, work)
    async with running(desk):
        await until(lambda: work.began.total() == 4)
        fetches = broker.fetches
        await until(lambda: desk.value("events_lag") == 46)
        assert (broker.held, broker.fetches) == (4, fetches)
        assert desk.value("events_in_flight") == 4
        work.go.set()
        await until(lambda: len(broker.answers) == 50)
    assert broker.most_held == 4
    assert set(broker.sent.values()) == {1}
    assert desk.value("events_in_flight") == 0
    assert desk.value("events_total", operation="say", outcome="acked") == 50
    assert desk.value("events_seconds_count", operation="say") == 50


async def test_poison_blocks_nobody() -> None:
    """What cannot be read, is wrong or always fails becomes a dead letter, once and with its reason."""
    broker, work = MemoryBroker(), Work()
    for number in range(100):
        broker.put("say", {"n": number}, f"good{number}")
        if number % 5 == 0:
            broker.publish(b"{" if number % 2 else b"[1]", {})
            broker.put("say", {"bug": True}, f"bug{number}")
            broker.put("say", {"wrong": True}, f"wrong{number}")
    desk = Desk(broker, work, MemoryRecords(), concurrency=3)
    async with running(desk):
        await until(lambda: not broker.messages)
    kinds = Counter(kind for kind, _ in broker.answers.values())
    assert kinds == {"result": 100, "error": 60}
    assert set(broker.sent.values()) == {1}
    assert len(broker.dead) == 60
    assert broker.dead["bug0"] == "internal_error: the operation failed"
    assert broker.dead["wrong0"] == "invalid_request: wrong"
    assert {work.began[f"bug{number}"] for number in range(0, 100, 5)} == {QUICK.max_deliveries}
    assert work.began["wrong0"] == 1
    assert desk.value("events_dead_letters_total", code="internal_error") == 20
    assert desk.value("events_dead_letters_total", code="invalid_request") == 40
    assert desk.value("events_retries_total", code="internal_error") == 20 * (QUICK.max_deliveries - 1)
    assert desk.value("events_total", operation="other", outcome="rejected") == 20


async def test_busy_times_are_waited_for() -> None:
    """However often an operation is busy, its message is tried again, and is no dead letter."""
    broker, work = MemoryBroker(), Work()
    broker.put("say", {"busy": 12}, "m")
    desk = Desk(broker, work, MemoryRecords())
    async with running(desk):
        await until(lambda: "m" in broker.answers)
    assert json.loads(broker.answers["m"][1])["attempt"] == 13
    assert desk.value("events_retries_total", code="queue_full") == 12


async def test_a_stop_lets_running_work_end() -> None:
    """No more is taken, what runs is finished and settled, and the source is closed after that."""
    broker, work = MemoryBroker(), Work()
    work.go.clear()
    for number in range(10):
        broker.put("say", {}, f"m{number}")
    desk = Desk(broker, work)
    task = asyncio.create_task(desk.consumer.run())
    await until(lambda: work.began.total() == 4)
    assert desk.consumer.state == "ready"
    desk.consumer.stop()
    assert desk.consumer.state == "draining"
    await until(lambda: not desk.source.closed)
    work.go.set()
    await asyncio.wait_for(task, 5)
    assert desk.source.closed
    assert len(broker.answers) == 4
    assert len(broker.messages) == 6
    assert all(message.attempt == 0 for message in broker.messages.values())


async def test_what_does_not_end_is_given_back() -> None:
    """After the time to drain, work is cut off, and its messages are for others at once, not after the ack wait."""
    broker, stuck, work = MemoryBroker(ack_seconds=3600), Work(), Work()
    stuck.go.clear()
    for number in range(4):
        broker.put("say", {}, f"m{number}")
    records = MemoryRecords()
    first, second = Desk(broker, stuck, records, drain_seconds=0.0), Desk(broker, work, records)
    task = asyncio.create_task(first.consumer.run())
    await until(lambda: stuck.began.total() == 4)
    first.consumer.stop()
    await asyncio.wait_for(task, 5)
    assert stuck.cancelled == 4
    assert (broker.held, len(broker.waiting())) == (0, 4)
    assert first.value("events_retries_total", code="draining") == 4
    async with running(second):
        await until(lambda: len(broker.answers) == 4)
    assert {json.loads(body)["attempt"] for _, body in broker.answers.values()} == {2}


async def test_what_a_last_fetch_brings_is_given_back() -> None:
    """A fetch that is under way when the stop comes is not cut off, and what it brings is not begun."""
    broker, work = MemoryBroker(ack_seconds=3600), Work()
    desk = Desk(broker, work)
    task = asyncio.create_task(desk.consumer.run())
    await until(lambda: broker.fetches == 1)
    desk.consumer.stop()
    broker.put("say", {}, "m")
    await asyncio.wait_for(task, 5)
    assert work.began.total() == 0
    assert len(broker.waiting()) == 1


@pytest.mark.parametrize("times", [1, 1000])
async def test_a_fetch_that_loses_its_cancellation(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cancelled once more, and then left: the worker ends."""
    monkeypatch.setattr(cancellation, "_END_SECONDS", 0.01)
    desk = Desk(MemoryBroker(), Work(), drain_seconds=0.01)
    lost = 0

    async def fetch(most: int, seconds: float) -> list[Delivery]:
        nonlocal lost
        while not desk.source.closed:
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                if lost == times:
                    raise
                lost += 1
        return []

    monkeypatch.setattr(desk.source, "fetch", fetch)
    task = asyncio.create_task(desk.consumer.run())
    await until(lambda: desk.consumer.state == "ready")
    desk.consumer.stop()
    async with asyncio.timeout(5):
        await task
    assert 1 <= lost <= 3
    assert desk.source.closed


async def test_a_broker_that_is_away(caplog: pytest.LogCaptureFixture) -> None:
    """At the start and later: told once each time, tried until it is back, and everything is answered."""
    broker, work = MemoryBroker(away=True), Work()
    broker.put("say", {}, "a")
    desk = Desk(broker, work)
    with caplog.at_level(logging.INFO, "warmstart.events"):
        async with running(desk):
            await until(lambda: (desk.value("events_broker_errors_total") or 0) > 3)
            assert desk.consumer.state == "connecting"
            broker.away = False
            await until(lambda: "a" in broker.answers)
            assert desk.consumer.state == "ready"
            broker.away = True
            await until(lambda: desk.consumer.state == "connecting")
            await until(lambda: desk.value("events_lag") is None)
            broker.put("say", {}, "b")
            broker.away = False
            await until(lambda: "b" in broker.answers)
    lines = [record.getMessage() for record in caplog.records if "broker is" in record.getMessage()]
    states = ["unavailable" in line for line in lines]
    assert states == [True, False, True, False]
    assert broker.opened == 2


async def test_a_stop_while_the_broker_is_away() -> None:
    """Nobody waits for it."""
    broker = MemoryBroker(away=True)
    desk = Desk(broker, Work())
    task = asyncio.create_task(desk.consumer.run())
    await until(lambda: (desk.value("events_broker_errors_total") or 0) > 1)
    desk.consumer.stop()
    await asyncio.wait_for(task, 5)


async def test_a_broker_that_refuses() -> None:
    """What would be refused again ends the worker, with the broker's reason."""
    broker = MemoryBroker(failure=SettingsError("EVENTS_URL: no such stream"))
    desk = Desk(broker, Work())
    with pytest.raises(SettingsError, match="no such stream"):
        await asyncio.wait_for(desk.consumer.run(), 5)
    assert desk.source.closed


async def test_a_settlement_is_tried_again() -> None:
    """A broker that is away for a moment gets the answer a moment later."""
    broker, work = MemoryBroker(refuse=2), Work()
    broker.put("say", {}, "m")
    async with running(Desk(broker, work)):
        await until(lambda: "m" in broker.answers)
    assert work.began["m"] == 1


async def test_an_answer_that_cannot_be_settled_is_not_computed_again() -> None:
    """The message comes again after the ack wait, and its kept answer is what is sent then."""
    now = 0.0
    broker, work = MemoryBroker(refuse=4, clock=lambda: now), Work()
    broker.put("say", {}, "m")
    desk = Desk(broker, work, MemoryRecords())
    async with running(desk):
        await until(lambda: desk.value("events_total", operation="say", outcome="unsettled") == 1)
        assert not broker.answers
        now = 31.0
        await until(lambda: "m" in broker.answers)
    assert work.began["m"] == 1
    assert json.loads(broker.answers["m"][1])["attempt"] == 1  # as it was computed
    assert desk.value("events_total", operation="say", outcome="repeated") == 1


async def test_duplicates_are_answered_once() -> None:
    """The same id, published ten times and worked on by two workers, is computed once and read once."""
    broker, work = MemoryBroker(), Work()
    for _ in range(10):
        broker.put("say", {"n": 1}, "same")
    records = MemoryRecords()
    async with running(Desk(broker, work, records), Desk(broker, work, records)):
        await until(lambda: not broker.messages)
    assert work.began["same"] == 1
    assert list(broker.answers) == ["same"]
    assert broker.dead == {}


async def test_a_worker_that_is_stuck_is_replaced() -> None:
    """What nobody extends goes to another worker; the first one's late answer is not seen."""
    now = 0.0
    broker, stuck, work = MemoryBroker(clock=lambda: now), Work(), Work()
    stuck.go.clear()
    broker.put("say", {}, "m")
    records = MemoryRecords(clock=lambda: now)
    first, second = Desk(broker, stuck, records), Desk(broker, work, records)
    async with running(first):
        await until(lambda: stuck.began.total() == 1)
        now = 31.0  # no beat came through in that time
        async with running(second):
            await until(lambda: "m" in broker.answers)
        stuck.go.set()
        await until(lambda: first.value("events_in_flight") == 0)
    assert json.loads(broker.answers["m"][1])["attempt"] == 2
    assert broker.sent["m"] == 1


async def test_long_work_is_kept() -> None:
    """While an operation runs its delivery is extended, so that nobody else gets it."""
    broker, work = MemoryBroker(ack_seconds=0.06), Work()
    work.go.clear()
    broker.put("say", {}, "m")
    async with running(Desk(broker, work, MemoryRecords()), Desk(broker, work, MemoryRecords())):
        await until(lambda: broker.extended >= 5)
        work.go.set()
        await until(lambda: "m" in broker.answers)
    assert (work.began["m"], broker.sent["m"]) == (1, 1)


async def test_messages_that_bring_workers_down_are_found_without_records() -> None:
    """More deliveries than ever should be: nobody is to try it once more."""
    broker, work = MemoryBroker(), Work()
    broker.put("say", {}, "m")
    broker.messages[0].attempt = 12
    async with running(Desk(broker, work, max_deliveries=12)):
        await until(lambda: "m" in broker.answers)
    assert work.began.total() == 0
    assert broker.dead == {"m": "delivery_limit: the message was delivered 13 times"}


async def test_nothing_is_taken_before_there_is_a_model() -> None:
    """Nor later, while there is none."""
    ready = asyncio.Event()

    async def wait() -> None:
        await ready.wait()

    broker, work = MemoryBroker(), Work()
    broker.put("say", {}, "a")
    desk = Desk(broker, work, ready=wait)
    async with running(desk):
        await asyncio.sleep(0)
        assert broker.fetches == 0
        ready.set()
        await until(lambda: "a" in broker.answers)
        ready.clear()
        fetches = broker.fetches + 1  # the one under way
        broker.put("say", {}, "b")
        await until(lambda: "b" in broker.answers)
        assert broker.fetches <= fetches
        ready.set()


async def test_an_adapter_that_cannot_read_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug there costs that message its deliveries, and nobody else anything."""
    from tests.events import memory_queue

    read: Callable[..., Envelope] = memory_queue.read

    def broken(body: bytes, *args: Any, **named: Any) -> Envelope:
        if b"bug" in body:
            raise RuntimeError("a bug")
        return read(body, *args, **named)

    monkeypatch.setattr(memory_queue, "read", broken)
    broker, work = MemoryBroker(), Work()
    broker.put("say", {"bug": 1}, "a")
    broker.put("say", {}, "b")
    async with running(Desk(broker, work)):
        await until(lambda: not broker.messages)
    assert broker.dead == {"a": "internal_error: the message cannot be read"}
    assert broker.answers["b"][0] == "result"


async def test_ten_thousand_small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through two workers, with a broker that goes away in between: every one is answered, exactly once, by itself."""
    monkeypatch.setattr(consumer_module, "_LAG_SECONDS", 5.0)
    broker, work = MemoryBroker(ack_seconds=0.5), Work()
    for number in range(10_000):
        broker.put("say", {"n": number}, f"m{number}")
    records = MemoryRecords()
    desks = Desk(broker, work, records, concurrency=16), Desk(broker, work, records, concurrency=16)
    async with running(*desks):
        await until(lambda: len(broker.answers) > 3000, 60)
        broker.away = True
        await until(lambda: all(desk.consumer.state == "connecting" for desk in desks))
        broker.away = False
        await until(lambda: len(broker.answers) == 10_000 and not broker.messages, 60)
    assert broker.dead == {}
    assert all(json.loads(broker.answers[f"m{number}"][1])["said"] == {"n": number} for number in range(10_000))
    assert all(desk.value("events_total", operation="say", outcome="acked") for desk in desks)
    assert set(work.began.values()) == {1}
