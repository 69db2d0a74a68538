"""The NATS JetStream submitter: sends requests and waits for their answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import RawStreamMsg

from runtime.errors import PayloadTooLarge
from runtime.events import envelope as names
from runtime.events.envelope import Envelope, encode
from runtime.events.queues.base import BrokerUnavailable, QueueOptions, Reply
from runtime.events.queues.nats.connection import NatsConnection
from runtime.events.queues.nats.streams import (
    answers_config,
    check_names,
    ensure_stream,
    max_body_bytes,
    requests_config,
    send,
    stored_message,
    token,
)

_MAX_POLL_SECONDS, _MIN_POLL_SECONDS = 1.0, 0.01
"""Maximum and minimum interval for polling the results stream.

The answer may be an old one or may have come while disconnected, so that no notification arrives.
"""


class NatsSubmitter:
    """The ``Submitter`` for NATS JetStream.

    Raises:
        SettingsError: the URL or a name is invalid.
    """

    def __init__(self, options: QueueOptions) -> None:
        check_names(options)
        self._options = options
        self._connection = NatsConnection(options.url)

    async def open(self) -> None:
        """Connect, and create the streams if they are missing (``Submitter.open``)."""
        options = self._options
        await self._connection.open()
        await ensure_stream(self._connection, requests_config(options.stream), options.create)
        await ensure_stream(self._connection, answers_config(options.results, options.results_seconds), options.create)

    async def submit(self, envelope: Envelope, *, wait: bool) -> AsyncGenerator[Reply, None]:
        """Store the request in its stream, and return its replies (``Submitter.submit``).

        Raises:
            BrokerUnavailable: the request may not be stored; it may be sent again with the same id.
            PayloadTooLarge: the message exceeds the server's maximum size.
        """
        received: asyncio.Queue[Msg] = asyncio.Queue()
        subscription = inbox = None
        if wait:
            # With streaming, the answer comes to the same inbox as the chunks, after them.
            inbox = (await self._connection.client()).new_inbox() if envelope.stream else None
            told = inbox or f"{self._options.results}.{token(envelope.id)}"
            subscription = await self._connection.subscribe(told, _put_into(received))
        try:
            await self._send(replace(envelope, reply_to=inbox, stream=envelope.stream and wait))
        except BaseException:
            await _unsubscribe(subscription)
            raise
        return self._replies(envelope.id, received, subscription)

    async def _send(self, envelope: Envelope) -> None:
        body, headers = encode(envelope.data), names.to_headers(envelope)
        if len(body) > (limit := await max_body_bytes(self._connection, headers)):
            raise PayloadTooLarge(
                f"the message has {len(body)} bytes; the NATS server accepts at most {limit} (max_payload)"
            )
        stream = self._options.stream
        error = await send(
            self._connection, stream, f"{stream}.{token(envelope.operation)}", envelope.id, body, headers
        )
        if error is not None:
            raise BrokerUnavailable(f"NATS does not store a message in the stream {stream}: {error.get('description')}")

    async def _replies(
        self, id: str, received: asyncio.Queue[Msg], subscription: Subscription | None
    ) -> AsyncGenerator[Reply, None]:
        if subscription is None:
            return
        pause = _MAX_POLL_SECONDS
        try:
            while True:
                if (answer := await stored_message(self._connection, self._options.results, id)) is not None:
                    while not received.empty():
                        if (reply := _reply(received.get_nowait())).kind == "chunk":
                            yield reply
                    yield _reply(answer)
                    return
                try:
                    while (reply := _reply(await _next(received, pause))).kind == "chunk":
                        yield reply
                    # Return the answer stored in the stream: the stream may refuse the one received here.
                    pause = _MIN_POLL_SECONDS
                except TimeoutError:
                    pause = min(2 * pause, _MAX_POLL_SECONDS)
        finally:
            await _unsubscribe(subscription)

    async def close(self) -> None:
        """Disconnect (``Submitter.close``)."""
        await self._connection.close()


def _put_into(received: asyncio.Queue[Msg]) -> Callable[[Msg], Awaitable[None]]:
    async def callback(message: Msg) -> None:
        received.put_nowait(message)

    return callback


async def _next(received: asyncio.Queue[Msg], seconds: float) -> Msg:
    async with asyncio.timeout(seconds):
        return await received.get()


def _reply(message: Msg | RawStreamMsg) -> Reply:
    headers: dict[str, Any] = message.headers or {}
    return Reply(
        kind=headers.get(names.KIND, "result"),
        body=json.loads(message.data or b""),
        chunk=int(headers.get(names.CHUNK, 0)),
        attempt=int(headers.get(names.ATTEMPT, 1)),
    )


async def _unsubscribe(subscription: Subscription | None) -> None:
    if subscription is not None:
        with suppress(nats.errors.Error, OSError):  # the subscription ended with its connection
            await subscription.unsubscribe()
