"""Cancelled at random moments, on every broker: each task ends, and nothing is lost, answered twice or left open."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import aio_pika
import psutil
import pytest
from aiokafka import AIOKafkaConsumer

from runtime.events.envelope import ID
from runtime.events.outcome import Ack
from runtime.events.queues.base import BrokerUnavailable, QueueOptions, Source, Submitter
from runtime.events.queues.factory import open_source, open_submitter
from runtime.events.queues.kafka import connection as kafka_connection
from runtime.events.queues.kafka.connection import client_options
from runtime.events.queues.nats import connection as nats_connection
from runtime.events.queues.rabbitmq import connection as rabbitmq_connection
from runtime.events.queues.redis import connection as redis_connection
from tests.events.workers import envelope
from tests.support.cancelling import CANCELLATIONS, cancel_at_random
from tests.support.fakes import until
from tests.support.kafka_broker import mock_kafka
from tests.support.nats_server import own_streams
from tests.support.nats_work import read_all
from tests.support.rabbitmq_server import AMQP_URL, own_queues
from tests.support.redis_queue import own_queue

_POOL = 8  # connections that a client may open as it needs them

pytestmark = pytest.mark.timeout(max(120, CANCELLATIONS))


class Broker(Protocol):
    """A kind of broker."""

    once: bool
    """Whether it keeps one answer of an id, however often it is sent."""

    @staticmethod
    def queue() -> AbstractAsyncContextManager[QueueOptions]:
        """A queue of a test's own; skips the test where no such broker answers."""
        ...

    @staticmethod
    async def answers(options: QueueOptions) -> Counter[str]:
        """How many answers of each id are in the results."""
        ...


class Redis:
    """Redis Streams."""

    once = True

    @staticmethod
    @asynccontextmanager
    async def queue() -> AsyncIterator[QueueOptions]:
        """See ``Broker``."""
        async with own_queue() as own:
            yield own.options

    @staticmethod
    async def answers(options: QueueOptions) -> Counter[str]:
        """See ``Broker``."""
        import redis

        with redis.Redis.from_url(options.url) as server:
            return Counter(fields[ID.encode()].decode() for _, fields in server.xrange(options.results))


class Nats:
    """NATS JetStream."""

    once = True

    @staticmethod
    def queue() -> AbstractAsyncContextManager[QueueOptions]:
        """See ``Broker``."""
        return own_streams(operation="complete")

    @staticmethod
    async def answers(options: QueueOptions) -> Counter[str]:
        """See ``Broker``."""
        return Counter(headers[ID] for _, headers, _ in await read_all(options, options.results))


class Rabbitmq:
    """RabbitMQ."""

    once = False

    @staticmethod
    def queue() -> AbstractAsyncContextManager[QueueOptions]:
        """See ``Broker``."""
        return own_queues()

    @staticmethod
    async def answers(options: QueueOptions) -> Counter[str]:
        """See ``Broker``."""
        found: Counter[str] = Counter()
        async with await aio_pika.connect(AMQP_URL) as connection:
            queue = await (await connection.channel()).get_queue(options.results, ensure=False)
            while (message := await queue.get(fail=False)) is not None:  # goes back with the connection
                found[message.message_id or ""] += 1
        return found


class Kafka:
    """Kafka, by librdkafka's mock cluster."""

    once = False

    @staticmethod
    @asynccontextmanager
    async def queue() -> AsyncIterator[QueueOptions]:
        """See ``Broker``."""
        name = f"warmstart-test.{uuid4().hex}"
        with mock_kafka() as mock:
            options = QueueOptions(mock.url, name, name, f"{name}.results", f"{name}.dead", operation="complete")
            for topic in (options.stream, options.results, options.dead):
                mock.topic(topic, 4)
            yield options

    @staticmethod
    async def answers(options: QueueOptions) -> Counter[str]:
        """See ``Broker``."""
        found: Counter[str] = Counter()
        consumer = AIOKafkaConsumer(
            options.results, **client_options(options.url), group_id=None, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            while records := await consumer.getmany(timeout_ms=1000):
                found.update(record.key.decode() for some in records.values() for record in some)
        finally:
            await consumer.stop()
        return found


BROKERS: list[type[Broker]] = [Redis, Nats, Rabbitmq, Kafka]


def connections(options: QueueOptions) -> int:
    """How many connections this process has to the broker."""
    port = urlsplit(options.url).port
    found = psutil.Process().net_connections("tcp")
    return sum(bool(one.raddr) and one.raddr.port == port and one.status == "ESTABLISHED" for one in found)


async def work(source: Source) -> int:
    """What a worker does with the next messages, and how many; after ``BrokerUnavailable`` it opens the source
    again.
    """
    try:
        await source.lag()
        deliveries = await source.fetch(16, 0.2)
        for delivery in deliveries:
            await delivery.extend()
            await delivery.settle(delivery.envelope(), Ack({"done": True}))
    except BrokerUnavailable:
        await source.open()
        return 0
    return len(deliveries)


OPTIONS = QueueOptions("redis://127.0.0.1:1", "requests", "workers", "results", "dead")


async def loses_it() -> None:
    """A call of a library that returns, when it is cancelled, as if it had not been."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(60)


async def within(errors: Callable[[], AbstractContextManager[None]], call: Coroutine[Any, Any, None]) -> None:
    """A call with the errors of its library translated."""
    with errors():
        await call


@pytest.mark.parametrize(
    "connection",
    [
        redis_connection.RedisConnection(OPTIONS).call,
        partial(within, nats_connection.broker_errors),
        rabbitmq_connection.RabbitMQConnection(OPTIONS).call,
        partial(within, kafka_connection.broker_errors),
    ],
    ids=["redis", "nats", "rabbitmq", "kafka"],
)
async def test_a_library_that_loses_it(
    connection: Callable[[Coroutine[Any, Any, None]], Coroutine[Any, Any, None]],
) -> None:
    """Whoever calls it through the link is cancelled all the same."""
    task = asyncio.create_task(connection(loses_it()))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()


@asynccontextmanager
async def opened(adapter: Any) -> AsyncIterator[Any]:
    """A source or a submitter, connected."""
    try:
        await adapter.open()
        yield adapter
    finally:
        await adapter.close()


@pytest.mark.parametrize("broker", BROKERS)
async def test_a_worker(broker: type[Broker]) -> None:
    """It is cancelled while it asks for the lag, fetches, extends and settles, and goes on each time. What it has left
    behind is delivered to another, and each message is answered.
    """
    ids = [str(number) for number in range(CANCELLATIONS)]
    async with broker.queue() as queue:
        options = replace(queue, ack_seconds=1.0)
        async with opened(open_submitter(queue)) as submitter, opened(open_source(options)) as source:

            async def submit() -> None:
                for id in ids:
                    await (await submitter.submit(envelope(id, {}), wait=False)).aclose()
                    await asyncio.sleep(0.005)

            await work(source)
            before = connections(options)
            async with asyncio.TaskGroup() as group:
                group.create_task(submit())
                went_on = await cancel_at_random(lambda: work(source), 0.02)
            await work(source)
            after = connections(options)
        async with opened(open_source(options)) as other:
            async with asyncio.timeout(max(60, CANCELLATIONS / 10)):
                while await work(other) or (answers := await broker.answers(options)).keys() != set(ids):
                    pass
    assert went_on == 0
    assert after <= before + _POOL
    assert not broker.once or answers == Counter(ids)


@pytest.mark.parametrize("broker", BROKERS)
async def test_a_submitter(broker: type[Broker]) -> None:
    """It is cancelled while it sends work and waits for the answers: the next one that is not gets its answer."""
    numbers = itertools.count()
    async with broker.queue() as options, opened(open_source(options)) as source:
        submitter: Submitter = open_submitter(options)

        async def answer() -> None:
            while True:
                await work(source)

        async def ask() -> list[Any]:
            replies = await submitter.submit(envelope(str(next(numbers)), {}), wait=True)
            async with aclosing(replies):
                return [reply.body async for reply in replies]

        async with opened(submitter), asyncio.TaskGroup() as group:
            answering = group.create_task(answer())
            async with asyncio.timeout(20):
                assert await ask() == [{"done": True}]
            before = connections(options)
            went_on = await cancel_at_random(ask, 0.02)
            async with asyncio.timeout(max(20, CANCELLATIONS / 10)):  # behind all those that nobody waits for
                assert await ask() == [{"done": True}]
            after = connections(options)
            answering.cancel()
    assert went_on == 0
    assert after <= before + _POOL


@pytest.mark.parametrize("broker", BROKERS)
async def test_a_start(broker: type[Broker]) -> None:
    """A submitter that is cancelled while it opens, and is closed, has no connections any more."""
    async with broker.queue() as options:

        async def start() -> None:
            submitter = open_submitter(options)
            try:
                await submitter.open()
            finally:
                await asyncio.shield(submitter.close())

        await start()
        before = connections(options)
        went_on = await cancel_at_random(start, 0.05)
        await until(lambda: connections(options) <= before, 20)  # the last ones are still being closed
    assert went_on == 0
