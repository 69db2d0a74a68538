"""The RabbitMQ source: requests from a queue, answers to another.

An answer is confirmed to be in its queue before its message is acknowledged. RabbitMQ does not detect duplicates: if a
worker dies in between, the message is redelivered, and the queue has two answers with the same id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from runtime.events.envelope import CHUNK, TYPE_PREFIX, Envelope, encode
from runtime.events.message import read
from runtime.events.outcome import Outcome, Reject, Retry
from runtime.events.queues.base import BrokerAdapter, BrokerUnavailable, QueueOptions
from runtime.events.queues.headers import (
    answer_headers,
    answer_id,
    dead_letter_headers,
    earlier_deliveries,
    encode_answer,
    retry_headers,
)
from runtime.events.queues.rabbitmq.connection import (
    RETRY_DELAYS,
    SECONDS,
    RabbitMQConnection,
    broker_errors,
    delay_queue,
)
from runtime.events.queues.rabbitmq.submitter import RabbitMQSubmitter

NAMES = (f"{TYPE_PREFIX}requests", f"{TYPE_PREFIX}results", f"{TYPE_PREFIX}dead")
REPLY_PREFIXES = ("amq.rabbitmq.reply-to.", "amq.gen-", f"{TYPE_PREFIX}replies")

_COUNT = "x-delivery-count"


class RabbitMQSource:
    """The ``Source`` for RabbitMQ. A queue is its own group of workers: ``QueueOptions.group`` is ignored.

    Raises:
        SettingsError: the URL is invalid.
    """

    def __init__(self, options: QueueOptions) -> None:
        self.name = f"rabbitmq:{options.stream}"
        self.options = options
        self.connection = RabbitMQConnection(options)
        self._channel: AbstractChannel | None = None
        self._queue: AbstractQueue | None = None
        self._received: list[AbstractIncomingMessage] = []
        self._receiving = asyncio.Lock()

    async def open(self) -> None:
        """Connect, and create the queues if they are missing (``Source.open``)."""
        await self.connection.connect()
        self._received.clear()  # from the old connection: the server redelivers them
        await self.connection.ensure(answers=True)
        self._channel = await self.connection.call(self.connection.channel())
        self._queue = await self.connection.call(self._channel.get_queue(self.options.stream, ensure=False))

    async def fetch(self, max_messages: int, wait_seconds: float) -> Sequence[RabbitMQDelivery]:
        """Consume messages until the first one arrives or the time is over (``Source.fetch``).

        The server sends messages only during the call, and at most ``max_messages`` of them. The next call returns the
        messages that arrive for a cancelled one.
        """
        if self._channel is None or self._queue is None or self._channel.is_closed:
            raise BrokerUnavailable("RabbitMQ: not connected")
        if not self._received:
            done = asyncio.Event()
            try:
                await self.connection.call(self._receive(self._channel, self._queue, max_messages, wait_seconds, done))
            finally:
                done.set()
        arrived, self._received = self._received[:max_messages], self._received[max_messages:]
        return [RabbitMQDelivery(self, message) for message in arrived]

    async def _receive(
        self, channel: AbstractChannel, queue: AbstractQueue, max_messages: int, seconds: float, done: asyncio.Event
    ) -> None:
        """Consume messages until ``done`` is set, also by the first message, or the time is over."""

        async def take(message: AbstractIncomingMessage) -> None:
            self._received.append(message)
            done.set()

        async with self._receiving:  # a cancelled fetch may still be receiving
            if self._received or done.is_set():
                return
            await channel.set_qos(prefetch_count=max_messages, timeout=SECONDS)  # per consumer, not per channel
            tag = await queue.consume(take, timeout=SECONDS)
            arrival, closed = asyncio.ensure_future(done.wait()), asyncio.ensure_future(_closed(channel))
            try:
                await asyncio.wait([arrival, closed], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            finally:
                arrival.cancel()
                closed.cancel()
                await queue.cancel(tag, timeout=SECONDS)  # messages in flight have arrived by then

    async def lag(self) -> int | None:
        """Return the number of messages in the request queue, without those in delay queues (``Source.lag``)."""
        return await self.connection.call(self._lag())

    async def _lag(self) -> int | None:
        channel = await self.connection.channel()
        queue = await channel.declare_queue(self.options.stream, passive=True, timeout=SECONDS)
        await channel.close()
        return queue.declaration_result.message_count

    async def close(self) -> None:
        """Disconnect (``Source.close``)."""
        await self.connection.close()


class RabbitMQDelivery:
    """The ``Delivery`` of a RabbitMQ message."""

    def __init__(self, source: RabbitMQSource, message: AbstractIncomingMessage) -> None:
        self._source = source
        self._message = message
        self._options = source.options
        self._connection = source.connection
        self._headers = {name: value for name, raw in message.headers.items() if (value := _text(raw)) is not None}
        self._answered = False

    @property
    def attempt(self) -> int:
        """The number of deliveries so far, including this one.

        Quorum queues count deliveries; classic queues only tell whether the message was delivered before.
        """
        count = self._message.headers.get(_COUNT)
        now = count if isinstance(count, int) else int(bool(self._message.redelivered))
        return 1 + earlier_deliveries(self._headers) + max(0, now)

    @property
    def _id(self) -> str:
        return self._message.message_id or self._message.correlation_id or ""

    def envelope(self) -> Envelope:
        """Parse the message (``Delivery.envelope``). The id is the message id or, without one, the correlation id."""
        headers = dict(self._headers)
        if self._message.content_type:
            headers["content-type"] = self._message.content_type
        options = self._options
        return read(
            self._message.body,
            headers,
            id=self._id,
            source=self._source.name,
            operation=options.operation,
            attempt=self.attempt,
            reply_to=self._message.reply_to,
            reply_prefixes=options.reply_prefixes,
            own_prefixes=(options.stream, options.results, options.dead),
        )

    async def extend(self) -> None:
        """Check that the channel is open (``Delivery.extend``).

        There is nothing to send: a message stays with its worker as long as the connection lasts.
        """
        with broker_errors():
            _ = self._message.channel

    async def send_chunk(self, envelope: Envelope, number: int, chunk: Mapping[str, Any]) -> None:
        """Send a chunk to the reply address, if there is one (``Delivery.send_chunk``)."""
        if envelope.reply_to is not None:
            headers = answer_headers(envelope.id, "chunk", self.attempt) | {CHUNK: str(number)}
            await self._connection.send_unconfirmed(
                envelope.reply_to, self._answer(envelope.id, encode(chunk), headers)
            )

    async def settle(self, envelope: Envelope | None, outcome: Outcome) -> None:
        """Send the answer, or a copy to a delay queue, and acknowledge the message (``Delivery.settle``).

        A retry without a delay requeues the message instead.
        """
        await self.extend()  # raises if the message, and so its answer, is now another worker's
        if not self._answered and (not isinstance(outcome, Retry) or outcome.delay > 0):
            await self._send(envelope, outcome)
            self._answered = True
        await self._connection.call(self._message.ack() if self._answered else self._message.nack(requeue=True))

    async def _send(self, envelope: Envelope | None, outcome: Outcome) -> None:
        id = answer_id(self._headers, self._id) if envelope is None else envelope.id
        if isinstance(outcome, Retry):
            seconds = next((seconds for seconds in RETRY_DELAYS if outcome.delay <= seconds), RETRY_DELAYS[-1])
            await self._connection.send(
                delay_queue(self._options.stream, seconds), self._copy(retry_headers(id, self.attempt))
            )
            return
        if isinstance(outcome, Reject):
            await self._connection.send(
                self._options.dead, self._copy(dead_letter_headers(id, self.attempt, outcome.reason))
            )
        kind, body = encode_answer(outcome)
        message = self._answer(id, body, answer_headers(id, kind, self.attempt))
        await self._connection.send(self._options.results, message)
        if envelope is not None and envelope.reply_to is not None:
            with suppress(BrokerUnavailable):  # the results queue has it; this copy is for a waiting client
                await self._connection.send_unconfirmed(envelope.reply_to, message)

    def _answer(self, id: str, body: bytes, headers: dict[str, str]) -> Message:
        return Message(
            body,
            headers=dict(headers),
            content_type="application/json",
            message_id=id or None,
            correlation_id=self._message.correlation_id or id or None,
        )

    def _copy(self, changes: Mapping[str, str | None]) -> Message:
        """Copy the message with changed headers.

        The time to live is left out, because the copy would expire, and so is the user id, because the server would
        refuse another user's.
        """
        original = self._message
        replaced = {name.lower() for name in changes} | {_COUNT}
        headers = {name: value for name, value in original.headers.items() if name.lower() not in replaced}
        return Message(
            original.body,
            headers=headers | {name: value for name, value in changes.items() if value is not None},
            content_type=original.content_type,
            content_encoding=original.content_encoding,
            correlation_id=original.correlation_id,
            reply_to=original.reply_to,
            message_id=original.message_id,
            timestamp=original.timestamp,
            type=original.type,
            app_id=original.app_id,
        )


async def _closed(channel: AbstractChannel) -> None:
    with suppress(Exception):
        await channel.closed()


def _text(value: Any) -> str | None:
    """Return a header's value as text; None for lists and tables, which this project does not use."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if isinstance(value, str | int | float) else None


ADAPTER = BrokerAdapter(RabbitMQSource, RabbitMQSubmitter, names=NAMES, reply_prefixes=REPLY_PREFIXES)
