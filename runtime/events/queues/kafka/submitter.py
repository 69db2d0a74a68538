"""The Kafka submitter: sends requests, and reads the results topic from its end, matching answers by key."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from runtime.cancellation import cancel_and_wait
from runtime.events.envelope import ATTEMPT, KIND, Envelope, encode, to_headers
from runtime.events.queues.base import BrokerUnavailable, QueueOptions, Reply
from runtime.events.queues.kafka.connection import (
    SECONDS,
    Sender,
    broker_errors,
    client_options,
    decode_headers,
    ensure_topics,
)


class KafkaSubmitter:
    """The ``Submitter`` for Kafka. There are no chunks.

    Raises:
        SettingsError: the URL is invalid.
    """

    def __init__(self, options: QueueOptions) -> None:
        self._options = options
        self._sender = Sender(options.url)
        self._consumer: AIOKafkaConsumer | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[bytes, list[asyncio.Queue[Reply | None]]] = {}

    async def open(self) -> None:
        """Create missing topics, and start to read the results topic from its end (``Submitter.open``)."""
        await self.close()
        await ensure_topics(self._options)
        await self._sender.start()
        with broker_errors():
            self._consumer = consumer = AIOKafkaConsumer(
                self._options.results, **client_options(self._options.url), group_id=None
            )
            await consumer.start()
            await consumer.seek_to_end()
            for partition in consumer.assignment():
                await consumer.position(partition)  # fixes the position now, and not at the first read
        self._reading = asyncio.create_task(self._read(consumer))

    async def submit(self, envelope: Envelope, *, wait: bool) -> AsyncGenerator[Reply, None]:
        """Send the request, and return its replies (``Submitter.submit``).

        Raises:
            BrokerUnavailable: the request may not be stored; it may be sent again with the same id.
            PayloadTooLarge: the message exceeds the brokers' maximum size.
        """
        answers: asyncio.Queue[Reply | None] = asyncio.Queue()
        key = envelope.id.encode()
        if wait:
            if self._reading is None or self._reading.done():
                raise BrokerUnavailable("Kafka: not connected")
            self._waiting.setdefault(key, []).append(answers)
        try:
            fields = to_headers(replace(envelope, reply_to=None, stream=False))
            await self._sender.send(self._options.stream, key, encode(envelope.data), fields)
        except BaseException:
            self._forget(key, answers)
            raise
        return self._replies(key, answers, wait)

    async def _replies(
        self, key: bytes, answers: asyncio.Queue[Reply | None], wait: bool
    ) -> AsyncGenerator[Reply, None]:
        try:
            if wait:
                reply = await answers.get()
                if reply is None:
                    raise BrokerUnavailable("Kafka: the results topic cannot be read any more")
                yield reply
        finally:
            self._forget(key, answers)

    def _forget(self, key: bytes, answers: asyncio.Queue[Reply | None]) -> None:
        others = [queue for queue in self._waiting.pop(key, ()) if queue is not answers]
        if others:
            self._waiting[key] = others

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        try:
            async for record in consumer:
                waiting = self._waiting.get(record.key or b"")
                if waiting is not None:
                    reply = _reply(record)
                    for queue in waiting:
                        queue.put_nowait(reply)
        finally:
            for queues in self._waiting.values():
                for queue in queues:
                    queue.put_nowait(None)

    async def close(self) -> None:
        """Stop reading and disconnect (``Submitter.close``)."""
        reading, self._reading = self._reading, None
        if reading is not None:
            await cancel_and_wait(reading)
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with suppress(KafkaError, OSError):
                async with asyncio.timeout(SECONDS):
                    await consumer.stop()
        await self._sender.stop()


def _reply(record: Any) -> Reply:
    headers: Any = decode_headers(record.headers)
    return Reply(kind=headers[KIND], body=json.loads(record.value), attempt=int(headers[ATTEMPT]))
