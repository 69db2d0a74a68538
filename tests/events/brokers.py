"""The brokers that the whole-process tests run on, each with a queue of a test's own and a reader of its results."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import redis.asyncio
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from runtime.events.envelope import ID
from runtime.events.queues.base import QueueOptions
from runtime.events.queues.redis.source import REPLY_PREFIXES
from tests.support.nats_server import own_streams, real_nats
from tests.support.redis_server import REDIS_URL, own_names


class Results(ABC):
    """What a reader of the results and of the dead letters has seen, from the first on."""

    def __init__(self, queue: QueueOptions) -> None:
        self.queue = queue
        self.counts: Counter[str] = Counter()
        self.bodies: dict[str, bytes] = {}
        self.dead: Counter[str] = Counter()

    def saw(self, place: str, id: str, body: bytes) -> None:
        """An entry of either."""
        if place == self.queue.dead:
            self.dead[id] += 1
        else:
            self.counts[id] += 1
            self.bodies[id] = body

    @abstractmethod
    async def run(self) -> None:
        """Read until cancelled."""


class Broker(Protocol):
    """A kind of broker."""

    @staticmethod
    def queue(**changes: Any) -> AbstractAsyncContextManager[QueueOptions]:
        """A queue of a test's own; skips the test where no such broker answers."""
        ...

    @staticmethod
    def results(queue: QueueOptions) -> Results:
        """A reader."""
        ...

    @staticmethod
    def records(folder: Path, queue: QueueOptions) -> dict[str, str]:
        """Settings that keep the records of what is done in a place that goes with the test."""
        ...


class Nats:
    """NATS JetStream, with records in SQLite."""

    @staticmethod
    def queue(**changes: Any) -> AbstractAsyncContextManager[QueueOptions]:
        """See ``Broker``."""
        return own_streams(**{"operation": "complete"} | changes)

    @staticmethod
    def results(queue: QueueOptions) -> Results:
        """See ``Broker``."""
        return _NatsResults(queue)

    @staticmethod
    def records(folder: Path, queue: QueueOptions) -> dict[str, str]:
        """See ``Broker``."""
        return {"IDEMPOTENCY": "sqlite", "CACHE_DIR": str(folder / "cache")}


class _NatsResults(Results):
    async def run(self) -> None:
        async with real_nats(self.queue.url) as client, asyncio.TaskGroup() as group:
            for place in (self.queue.results, self.queue.dead):
                group.create_task(self._read(client.jetstream(), place))

    async def _read(self, js: JetStreamContext, place: str) -> None:
        while True:
            try:
                subscription = await js.subscribe(f"{place}.>", stream=place, ordered_consumer=True)
                break
            except NotFoundError:  # not made yet
                await asyncio.sleep(0.05)
        while True:
            message = await subscription.next_msg(timeout=None)
            self.saw(place, (message.headers or {})[ID], message.data)


class Redis:
    """Redis Streams, with records in Redis."""

    @staticmethod
    @asynccontextmanager
    async def queue(**changes: Any) -> AsyncIterator[QueueOptions]:
        """See ``Broker``."""
        with own_names() as own:
            names = {"stream": f"{own}:requests", "results": f"{own}:results", "dead": f"{own}:dead"}
            yield QueueOptions(
                url=REDIS_URL,
                group="workers",
                **{"operation": "complete", "reply_prefixes": REPLY_PREFIXES} | names | changes,
            )

    @staticmethod
    def results(queue: QueueOptions) -> Results:
        """See ``Broker``."""
        return _RedisResults(queue)

    @staticmethod
    def records(folder: Path, queue: QueueOptions) -> dict[str, str]:
        """See ``Broker``."""
        keep = {"IDEMPOTENCY_TTL_SECONDS": "600"}  # the records outlive the test, and the server is shared
        return keep | {"IDEMPOTENCY": "redis", "REDIS_URL": queue.url, "CACHE_DIR": str(folder / "cache")}


class _RedisResults(Results):
    async def run(self) -> None:
        client = redis.asyncio.Redis.from_url(self.queue.url, socket_timeout=None)  # one would lose cancellations
        last: dict[str, Any] = dict.fromkeys((self.queue.results, self.queue.dead), "0")
        try:
            while True:
                for place, entries in await client.xread(last, count=1000, block=200) or ():
                    last[place.decode()] = entries[-1][0]
                    for _, fields in entries:
                        self.saw(place.decode(), fields[ID.encode()].decode(), fields[b"data"])
        finally:
            await client.aclose()


BROKERS: list[type[Broker]] = [Nats, Redis]
