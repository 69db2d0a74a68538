"""The Redis Streams submitter: sends requests and reads their reply streams."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace

from runtime.errors import SettingsError
from runtime.events import envelope as names
from runtime.events.envelope import Envelope, encode, to_headers
from runtime.events.queues.base import BrokerUnavailable, QueueOptions, Reply
from runtime.events.queues.redis.connection import RedisConnection

DATA = b"data"
"""The field that has a message's body; the other fields are its headers."""

REPLIES = "warmstart:reply:"
"""The prefix of the names of reply streams."""

_BLOCK_SECONDS = 1.0
_MAX_READERS = 64
"""The maximum number of connections that wait for answers at once; further readers take turns."""


class RedisSubmitter:
    """The ``Submitter`` for Redis Streams. Each request has its own reply stream, for its chunks and its answer.

    Raises:
        SettingsError: the URL or the names are invalid.
    """

    def __init__(self, options: QueueOptions) -> None:
        self._options = options
        self._connection = RedisConnection(options)
        self._reader_slots = asyncio.Semaphore(_MAX_READERS)

    async def open(self) -> None:
        """Connect, and check that the stream exists if it is not to be created (``Submitter.open``)."""
        await self._connection.check()
        if not self._options.create and not await self._connection.call(
            self._connection.client.exists(self._options.stream)
        ):
            raise SettingsError(f"Redis has no stream {self._options.stream}; create it, or leave out --no-create")

    async def submit(self, envelope: Envelope, *, wait: bool) -> AsyncGenerator[Reply, None]:
        """Add the request to the stream, and return its replies (``Submitter.submit``)."""
        reply_to = REPLIES + secrets.token_hex(16) if wait else None
        fields: dict[str, str | bytes] = {**to_headers(replace(envelope, reply_to=reply_to))}
        fields[DATA.decode()] = encode(envelope.data)
        await self._connection.call(self._connection.client.xadd(self._options.stream, fields))
        return self._answer(reply_to)

    async def close(self) -> None:
        """Disconnect (``Submitter.close``)."""
        await self._connection.close()

    async def _answer(self, reply_to: str | None) -> AsyncGenerator[Reply, None]:
        if reply_to is None:
            return
        last = b"0"
        try:
            while True:
                async with self._reader_slots:
                    call = self._connection.client.xread({reply_to: last}, block=int(_BLOCK_SECONDS * 1000))
                    streams = await self._connection.call(call, _BLOCK_SECONDS)
                for entry in streams[0][1] if streams else ():
                    last, reply = entry[0], _reply(entry[1])
                    yield reply
                    if reply.kind != "chunk":
                        return
        finally:
            with suppress(BrokerUnavailable):  # the reply stream expires by itself
                await self._connection.call(self._connection.client.unlink(reply_to))


def _reply(fields: dict[bytes, bytes]) -> Reply:
    kind = fields[names.KIND.encode()]
    return Reply(
        "chunk" if kind == b"chunk" else "result" if kind == b"result" else "error",
        json.loads(fields[DATA]),
        int(fields.get(names.CHUNK.encode(), 0)),
        int(fields[names.ATTEMPT.encode()]),
    )
