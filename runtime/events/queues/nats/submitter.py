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
    requests_config,
    room,
    send,
    stored,
    token,
)

_LOOK_SECONDS, _SOON_SECONDS = 1.0, 0.01
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
        self._link = NatsConnection(options.url)

    async def open(self) -> None:
        """Connect, and create the streams if they are missing (``Submitter.open``)."""
        options = self._options
        await self._link.open()
        await ensure_stream(self._link, requests_config(options.stream), options.create)
        await ensure_stream(self._link, answers_config(options.results, options.results_seconds), options.create)

    async def submit(self, envelope: Envelope, *, wait: bool) -> AsyncGenerator[Reply, None]:
        """Store the request in its stream, and return its replies (``Submitter.submit``).

        Raises:
            BrokerUnavailable: the request may not be stored; it may be sent again with the same id.
            PayloadTooLarge: the message exceeds the server's maximum size.
        """
        heard: asyncio.Queue[Msg] = asyncio.Queue()
        subscription = inbox = None
        if wait:
            # With streaming, the answer comes to the same inbox as the chunks, after them.
            inbox = (await self._link.client()).new_inbox() if envelope.stream else None
            told = inbox or f"{self._options.results}.{token(envelope.id)}"
            subscription = await self._link.subscribe(told, _into(heard))
        try:
            await self._send(replace(envelope, reply_to=inbox, stream=envelope.stream and wait))
        except BaseException:
            await _end(subscription)
            raise
        return self._replies(envelope.id, heard, subscription)

    async def _send(self, envelope: Envelope) -> None:
        body, headers = encode(envelope.data), names.headers(envelope)
        if len(body) > (most := await room(self._link, headers)):
            raise PayloadTooLarge(f"the message has {len(body)} bytes, and the NATS server takes {most} (max_payload)")
        stream = self._options.stream
        error = await send(self._link, stream, f"{stream}.{token(envelope.operation)}", envelope.id, body, headers)
        if error is not None:
            raise BrokerUnavailable(f"NATS refuses a message to the stream {stream}: {error.get('description')}")

    async def _replies(
        self, id: str, heard: asyncio.Queue[Msg], subscription: Subscription | None
    ) -> AsyncGenerator[Reply, None]:
        if subscription is None:
            return
        pause = _LOOK_SECONDS
        try:
            while True:
                if (answer := await stored(self._link, self._options.results, id)) is not None:
                    while not heard.empty():
                        if (reply := _reply(heard.get_nowait())).kind == "chunk":
                            yield reply
                    yield _reply(answer)
                    return
                try:
                    while (reply := _reply(await _next(heard, pause))).kind == "chunk":
                        yield reply
                    # Return the answer stored in the stream: the stream may refuse the one received here.
                    pause = _SOON_SECONDS
                except TimeoutError:
                    pause = min(2 * pause, _LOOK_SECONDS)
        finally:
            await _end(subscription)

    async def close(self) -> None:
        """Disconnect (``Submitter.close``)."""
        await self._link.close()


def _into(heard: asyncio.Queue[Msg]) -> Callable[[Msg], Awaitable[None]]:
    async def took(message: Msg) -> None:
        heard.put_nowait(message)

    return took


async def _next(heard: asyncio.Queue[Msg], seconds: float) -> Msg:
    async with asyncio.timeout(seconds):
        return await heard.get()


def _reply(message: Msg | RawStreamMsg) -> Reply:
    headers: dict[str, Any] = message.headers or {}
    return Reply(
        kind=headers.get(names.KIND, "result"),
        body=json.loads(message.data or b""),
        chunk=int(headers.get(names.CHUNK, 0)),
        attempt=int(headers.get(names.ATTEMPT, 1)),
    )


async def _end(subscription: Subscription | None) -> None:
    if subscription is not None:
        with suppress(nats.errors.Error, OSError):  # the subscription ended with its connection
            await subscription.unsubscribe()
