"""A queue in a real Redis and its workers, for tests."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import redis

from runtime.errors import InternalError, InvalidRequest
from runtime.events.envelope import Envelope
from runtime.events.outcome import Policy, Reject
from runtime.events.processor import Processor
from runtime.events.queues.base import QueueOptions, Reply
from runtime.events.queues.redis.source import RedisDelivery, RedisSource, RedisSubmitter
from tests.support.redis_server import REDIS_URL, own_names

PATIENCE = 20.0


class Queue:
    """A queue of one test, with access to its data in Redis."""

    def __init__(self, prefix: str, url: str = REDIS_URL) -> None:
        self.options = QueueOptions(
            url,
            f"{prefix}:requests",
            "workers",
            f"{prefix}:results",
            f"{prefix}:dead",
            operation="echo",
            reply_prefixes=("warmstart:reply:", f"{prefix}:reply"),
        )
        self.server = redis.Redis.from_url(url)
        self._opened: list[RedisSource | RedisSubmitter] = []

    async def source(self, **changes: Any) -> RedisSource:
        opened = RedisSource(replace(self.options, **changes))
        await opened.open()
        self._opened.append(opened)
        return opened

    async def submitter(self, **changes: Any) -> RedisSubmitter:
        opened = RedisSubmitter(replace(self.options, **changes))
        await opened.open()
        self._opened.append(opened)
        return opened

    async def close(self) -> None:
        for opened in self._opened:
            await opened.close()
        self.server.close()

    def add(self, data: Any = None, **headers: str) -> str:
        """Add a message as a plain Redis client would; return its id in the stream."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.server.xadd(self.options.stream, fields | {"data": json.dumps(data or {"n": 1})}).decode()

    def results(self) -> list[dict[str, str]]:
        return self._read(self.options.results)

    def answer(self, id: str) -> list[dict[str, str]]:
        return self._read(f"{self.options.results}:{id}")

    def dead(self) -> list[dict[str, str]]:
        return self._read(self.options.dead)

    def left(self) -> int:
        """Return the number of unsettled messages."""
        return self.server.xlen(self.options.stream)

    def pending(self) -> dict[str, tuple[str, int]]:
        """Return (consumer, number of deliveries) of each message that was delivered and is not settled, by id."""
        found = self.server.xpending_range(self.options.stream, self.options.group, "-", "+", 1000)
        return {one["message_id"].decode(): (one["consumer"].decode(), one["times_delivered"]) for one in found}

    def consumers(self) -> set[str]:
        return {one["name"].decode() for one in self.server.xinfo_consumers(self.options.stream, self.options.group)}

    def abandon(self, delivery: RedisDelivery, seconds: float = 31) -> None:
        """Make a delivery look as if nobody had extended it for some seconds."""
        id, consumer = delivery._id.decode(), delivery._source.consumer
        self.server.xclaim(
            self.options.stream, self.options.group, consumer, 0, [id], idle=int(seconds * 1000), justid=True
        )

    def _read(self, stream: str) -> list[dict[str, str]]:
        return [{k.decode(): v.decode() for k, v in fields.items()} for _, fields in self.server.xrange(stream)]


@asynccontextmanager
async def own_queue() -> AsyncIterator[Queue]:
    with own_names() as prefix:
        made = Queue(prefix)
        yield made
        await made.close()


def asking(data: dict[str, Any], id: str | None = None, **fields: Any) -> Envelope:
    return Envelope(id or uuid4().hex, "test", "warmstart.echo", "echo", data, **fields)


class Echo:
    """The operation of these tests: answers its payload and its number of calls, in chunks if streamed."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    async def __call__(self, envelope: Envelope, send_chunk: Any = None) -> Mapping[str, Any]:
        self.calls[envelope.id] += 1
        if envelope.data.get("poison"):
            raise InternalError("it always fails")
        if send_chunk is not None:
            for number in range(envelope.data["chunks"]):
                await send_chunk(number, {"piece": number})
        return {"echo": envelope.data, "call": self.calls[envelope.id]}


def processing(echo: Echo, records: Any = None) -> Processor:
    return Processor(echo, records, Policy(transient_seconds=0, failure_seconds=0), lease_seconds=30)


async def handle(processor: Processor, delivery: RedisDelivery) -> Any:
    """Process and settle one message, as a worker does."""
    try:
        envelope = delivery.envelope()
    except InvalidRequest as error:
        outcome: Any = Reject(error)
        await delivery.settle(None, outcome)
        return outcome

    async def send(number: int, chunk: Mapping[str, Any]) -> None:
        await delivery.send_chunk(envelope, number, chunk)

    outcome = await processor(envelope, send_chunk=send, extend=delivery.extend)
    await delivery.settle(envelope, outcome)
    return outcome


async def run_worker(source: RedisSource, processor: Processor, done: Callable[[], bool]) -> None:
    """Process messages until ``done`` returns True; it raises if the broker is unavailable."""
    while not done():
        for delivery in await source.fetch(4, 0.05):
            await handle(processor, delivery)


async def fetch(source: RedisSource, count: int = 1) -> list[RedisDelivery]:
    """Wait for a number of messages and return them."""
    found: list[RedisDelivery] = []
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            found += await source.fetch(count - len(found), 1)
    return found


async def all_replies(answer: Any) -> list[Reply]:
    async with asyncio.timeout(PATIENCE):
        return [reply async for reply in answer]
