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
from runtime.events.envelope import Envelope, encode, headers
from runtime.events.queues.base import BrokerUnavailable, QueueOptions, Reply
from runtime.events.queues.redis.connection import RedisConnection

DATA = b"data"
"""The field that has a message's body; the other fields are its headers."""

REPLIES = "warmstart:reply:"
"""The prefix of the names of reply streams."""

_TURN_SECONDS = 1.0
_MOST_READERS = 64
"""The maximum number of connections that wait for answers at once; further readers take turns."""


class RedisSubmitter:
    """The ``Submitter`` for Redis Streams. Each request has its own reply stream, for its chunks and its answer.

    Raises:
        SettingsError: the URL or the names are invalid.
    """

    def __init__(self, options: QueueOptions) -> None:
        self._options = options
        self._link = RedisConnection(options)
        self._turn = asyncio.Semaphore(_MOST_READERS)

    async def open(self) -> None:
        """Connect, and check that the stream exists if it is not to be created (``Submitter.open``)."""
        await self._link.check()
        if not self._options.create and not await self._link.call(self._link.client.exists(self._options.stream)):
            raise SettingsError(f"Redis has no stream {self._options.stream}; make it first")

    async def submit(self, envelope: Envelope, *, wait: bool) -> AsyncGenerator[Reply, None]:
        """Add the request to the stream, and return its replies (``Submitter.submit``)."""
        reply_to = REPLIES + secrets.token_hex(16) if wait else None
        fields: dict[str, str | bytes] = {**headers(replace(envelope, reply_to=reply_to))}
        fields[DATA.decode()] = encode(envelope.data)
        await self._link.call(self._link.client.xadd(self._options.stream, fields))
        return self._answer(reply_to)

    async def close(self) -> None:
        """Disconnect (``Submitter.close``)."""
        await self._link.close()

    async def _answer(self, reply_to: str | None) -> AsyncGenerator[Reply, None]:
        if reply_to is None:
            return
        last = b"0"
        try:
            while True:
                async with self._turn:
                    asked = self._link.client.xread({reply_to: last}, block=int(_TURN_SECONDS * 1000))
                    found = await self._link.call(asked, _TURN_SECONDS)
                for entry in found[0][1] if found else ():
                    last, reply = entry[0], _reply(entry[1])
                    yield reply
                    if reply.kind != "chunk":
                        return
        finally:
            with suppress(BrokerUnavailable):  # the reply stream expires by itself
                await self._link.call(self._link.client.unlink(reply_to))


def _reply(fields: dict[bytes, bytes]) -> Reply:
    kind = fields[names.KIND.encode()]
    return Reply(
        "chunk" if kind == b"chunk" else "result" if kind == b"result" else "error",
        json.loads(fields[DATA]),
        int(fields.get(names.CHUNK.encode(), 0)),
        int(fields[names.ATTEMPT.encode()]),
    )
