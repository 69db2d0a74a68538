"""The Redis Streams source: requests from a consumer group, answers to a results stream and to one stream per id.

Writing the answer and removing the message is one atomic step of the server. If a worker dies before it, the message is
redelivered; if two workers do the same work, the first one's answer counts.

Needs Redis 7.0, whose XAUTOCLAIM drops deleted entries. Redis Cluster is not supported: a script's keys would have to
be on the same node.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

import redis

from runtime.errors import InvalidRequest, SettingsError
from runtime.events import envelope as names
from runtime.events.envelope import Envelope, encode
from runtime.events.message import read
from runtime.events.outcome import Ack, Outcome, Retry
from runtime.events.queues.base import BrokerAdapter, BrokerUnavailable, QueueOptions
from runtime.events.queues.redis.connection import RedisConnection
from runtime.events.queues.redis.scripts import CHUNK, CLAIM, DELAY, DELETE_CONSUMERS, EXTEND, RETURN_UNRECEIVED, SETTLE
from runtime.events.queues.redis.submitter import DATA, REPLIES, RedisSubmitter

NAMES = ("warmstart:requests", "warmstart:results", "warmstart:dead")
REPLY_PREFIXES = (REPLIES,)

_BLOCK_SECONDS = 1.0
"""How long one call waits for new messages; in between, abandoned and due messages are claimed."""

_MAX_DEAD_LETTER_FIELDS = 1000
"""The maximum number of a message's fields that are copied to its dead letter; a script takes some thousand values."""

_IDLE_CONSUMER_SECONDS = 3600.0
"""How long a consumer may be idle before its name is deleted; a waiting worker calls Redis every second."""


class RedisSource:
    """The ``Source`` for Redis Streams. Calls of ``fetch`` must not overlap.

    Raises:
        SettingsError: the URL or the names are invalid.
    """

    def __init__(self, options: QueueOptions) -> None:
        self.name = f"redis:{options.stream}"
        self.options = options
        self.connection = RedisConnection(options)
        self.delayed = f"{options.stream}:later:{options.group}"
        self.consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._in_progress: WeakValueDictionary[bytes, RedisDelivery] = WeakValueDictionary()
        self._cursor = b"0-0"

    async def open(self) -> None:
        """Connect, and create the stream and its group if they are missing (``Source.open``)."""
        stream, group = self.options.stream, self.options.group
        await self.connection.check()
        try:
            if self.options.create:
                await self.connection.call(self.connection.client.xgroup_create(stream, group, id="0", mkstream=True))
            else:
                await self.connection.call(self.connection.client.xpending(stream, group))
        except BrokerUnavailable as error:
            cause = error.__cause__
            if not isinstance(cause, redis.ResponseError) or "BUSYGROUP" not in str(cause):
                if "NOGROUP" in str(cause):
                    raise SettingsError(
                        f"Redis has no stream {stream} with the group {group}; create them, or leave out --no-create"
                    ) from None
                raise
        await self._run(DELETE_CONSUMERS, group, int(_IDLE_CONSUMER_SECONDS * 1000), "")
        await self._return_unreceived()

    async def fetch(self, max_messages: int, wait_seconds: float) -> Sequence[RedisDelivery]:
        """Fetch messages that are due, abandoned or new (``Source.fetch``).

        Messages that arrive while the call is cancelled are returned to the queue at once.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_seconds
        try:
            while True:
                deliveries, due_seconds = await self._claim(max_messages)
                if not deliveries:
                    deliveries = await self._read(max_messages, min(end - loop.time(), due_seconds, _BLOCK_SECONDS))
                if deliveries or loop.time() >= end:
                    return deliveries
        except asyncio.CancelledError:
            with suppress(BrokerUnavailable):  # then other workers claim the messages as abandoned
                await self._return_unreceived()
            raise

    async def lag(self) -> int | None:
        """Return the number of messages not delivered to the group yet (``Source.lag``)."""
        groups = await self.connection.call(self.connection.client.xinfo_groups(self.options.stream))
        for group in groups:
            if group["name"] == self.options.group.encode():
                if group.get("lag") is not None:
                    return int(group["lag"])
                # Redis reports no lag once entries were deleted. Settled messages are deleted, so count the others.
                length = await self.connection.call(self.connection.client.xlen(self.options.stream))
                return max(0, int(length) - int(group["pending"]))
        return None

    async def close(self) -> None:
        """Disconnect; messages that are not settled go to other workers at once (``Source.close``)."""
        with suppress(BrokerUnavailable):
            self._in_progress.clear()
            await self._return_unreceived()
            await self._run(DELETE_CONSUMERS, self.options.group, int(_IDLE_CONSUMER_SECONDS * 1000), self.consumer)
        await self.connection.close()

    async def _claim(self, max_messages: int) -> tuple[list[RedisDelivery], float]:
        """Claim messages that are due and then abandoned ones; also return the seconds until the next is due."""
        abandoned = int(self.options.ack_seconds * 1000)
        values = (self.options.group, self.consumer, max_messages, abandoned, self._cursor)
        self._cursor, due, entries = await self._run(CLAIM, *values)
        claimed = [
            self._new_delivery(id, count, dict(zip(fields[::2], fields[1::2], strict=True)))
            for id, count, fields in entries
        ]
        return claimed, _BLOCK_SECONDS if due < 0 else due / 1000

    async def _read(self, max_messages: int, seconds: float) -> list[RedisDelivery]:
        """Read messages that were not delivered yet."""
        block = int(seconds * 1000) if seconds > 0.001 else None  # 0 would block for ever
        streams = {self.options.stream: ">"}
        call = self.connection.client.xreadgroup(
            self.options.group, self.consumer, streams, count=max_messages, block=block
        )
        streams_read = await self.connection.call(call, seconds)
        return [self._new_delivery(id, 1, fields) for _, entries in streams_read for id, fields in entries]

    def _new_delivery(self, id: bytes, count: int, fields: Mapping[bytes, bytes]) -> RedisDelivery:
        delivery = self._in_progress[id] = RedisDelivery(self, id, count, fields)
        return delivery

    async def _return_unreceived(self) -> None:
        await self._run(RETURN_UNRECEIVED, self.options.group, self.consumer, *self._in_progress)

    async def _run(self, script: str, *values: str | bytes | int) -> Any:
        return await self.connection.run(script, [self.options.stream, self.delayed], values)


class RedisDelivery:
    """The ``Delivery`` of a Redis stream's entry.

    Args:
        source: the delivery's source.
        id: the stream entry's id.
        count: the number of deliveries so far, including this one.
        fields: the entry's fields.
    """

    def __init__(self, source: RedisSource, id: bytes, count: int, fields: Mapping[bytes, bytes]) -> None:
        self._source = source
        self._options = source.options
        self._id = id
        self._count = count
        self._fields = fields
        self._headers = {
            name.decode(errors="backslashreplace").lower(): value.decode(errors="backslashreplace")
            for name, value in fields.items()
            if name != DATA
        }

    @property
    def attempt(self) -> int:
        """The number of deliveries so far, including this one, as Redis counts them."""
        return self._count

    def envelope(self) -> Envelope:
        """Parse the entry: its payload is the field ``data``, the other fields are headers (``Delivery.envelope``)."""
        if DATA not in self._fields:
            raise InvalidRequest(
                "data: it is missing; a message must have its JSON payload in the field of this name", param="data"
            )
        return read(
            self._fields[DATA],
            self._headers,
            id=self._id.decode(),
            source=self._source.name,
            operation=self._options.operation,
            attempt=self._count,
            reply_prefixes=self._options.reply_prefixes,
        )

    async def extend(self) -> None:
        """Reset the entry's idle time, unless it was delivered again (``Delivery.extend``)."""
        if not await self._run(EXTEND, self._source.consumer, self._id, self._count):
            raise BrokerUnavailable(f"{self._id.decode()} was delivered to another worker, or deleted")

    async def send_chunk(self, envelope: Envelope, number: int, chunk: Mapping[str, Any]) -> None:
        """Append a chunk to the reply stream, if there is one (``Delivery.send_chunk``)."""
        if envelope.reply_to is None:
            return
        fields = self._answer(envelope, "chunk", encode(chunk)) | {names.CHUNK.encode(): str(number).encode()}
        await self._source.connection.run(CHUNK, [envelope.reply_to], [self._results_milliseconds(), *_flatten(fields)])

    async def settle(self, envelope: Envelope | None, outcome: Outcome) -> None:
        """Write the answer and remove the entry in one script, or schedule a redelivery (``Delivery.settle``)."""
        if isinstance(outcome, Retry):
            await self._run(DELAY, self._source.consumer, self._id, self._count, int(outcome.delay * 1000))
            return
        dead_letter: dict[bytes, bytes] = {}
        if isinstance(outcome, Ack):
            answer = self._answer(envelope, "result", encode(outcome.result))
        else:
            answer = self._answer(envelope, "error", encode(outcome.error.openai()))
            dead_letter = dict(list(self._fields.items())[:_MAX_DEAD_LETTER_FIELDS])
            dead_letter |= {DATA: self._fields.get(DATA, b""), names.REASON.encode(): outcome.reason.encode()}
            dead_letter |= {name: answer[name] for name in (names.ID.encode(), names.ATTEMPT.encode())}
        options = self._options
        streams = [options.results, f"{options.results}:{self._answer_id(envelope)}", options.dead]
        if envelope is not None and envelope.reply_to is not None:
            streams.append(envelope.reply_to)
        fields = _flatten(answer)
        await self._source.connection.run(
            SETTLE,
            [options.stream, self._source.delayed, *streams],
            [options.group, self._id, self._results_milliseconds(), len(fields), *fields, *_flatten(dead_letter)],
        )

    def _answer_id(self, envelope: Envelope | None) -> str:
        """Return the answer's id: the envelope's, else a valid one from the headers, else the entry's."""
        if envelope is not None:
            return envelope.id
        given = self._headers.get(names.ID.lower(), "")
        return given if 0 < len(given) <= names.MAX_ID_CHARS else self._id.decode()

    def _answer(self, envelope: Envelope | None, kind: str, body: bytes) -> dict[bytes, bytes]:
        fields = {
            names.ID: self._answer_id(envelope),
            names.OPERATION: None if envelope is None else envelope.operation,
            names.TRACEPARENT: None if envelope is None else envelope.traceparent,
            names.KIND: kind,
            names.ATTEMPT: str(self._count),
        }
        return {name.encode(): value.encode() for name, value in fields.items() if value is not None} | {DATA: body}

    def _results_milliseconds(self) -> int:
        return max(1, int(self._options.results_seconds * 1000))

    async def _run(self, script: str, *values: str | bytes | int) -> Any:
        return await self._source.connection.run(
            script, [self._options.stream, self._source.delayed], [self._options.group, *values]
        )


def _flatten(fields: Mapping[bytes, bytes]) -> list[bytes]:
    return [part for field in fields.items() for part in field]


ADAPTER = BrokerAdapter(RedisSource, RedisSubmitter, names=NAMES, reply_prefixes=REPLY_PREFIXES)
