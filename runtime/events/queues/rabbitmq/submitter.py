"""The RabbitMQ submitter: sends requests, and receives chunks and answers by direct reply-to."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage

from runtime.events.envelope import ATTEMPT, CHUNK, KIND, Envelope, encode, to_headers
from runtime.events.queues.base import BrokerUnavailable, QueueOptions, Reply
from runtime.events.queues.rabbitmq.connection import SECONDS, RabbitMQConnection

_DIRECT = "amq.rabbitmq.reply-to"


class RabbitMQSubmitter:
    """The ``Submitter`` for RabbitMQ.

    Raises:
        SettingsError: the URL is invalid.
    """

    def __init__(self, options: QueueOptions) -> None:
        self._options = options
        self._connection = RabbitMQConnection(options)
        self._pending: dict[str, asyncio.Queue[Reply | None]] = {}

    async def open(self) -> None:
        """Connect, create the request queue if it is missing, and consume direct replies (``Submitter.open``)."""
        await self._connection.connect()
        await self._connection.ensure(answers=False)
        channel = self._connection.send_channel  # direct replies come to the channel that sent the request
        queue = await self._connection.call(channel.get_queue(_DIRECT, ensure=False))
        await self._connection.call(queue.consume(self._on_reply, no_ack=True, timeout=SECONDS))
        channel.close_callbacks.add(self._on_close)

    async def submit(self, envelope: Envelope, *, wait: bool) -> AsyncGenerator[Reply, None]:
        """Send the request, and return its replies (``Submitter.submit``)."""
        answers: asyncio.Queue[Reply | None] = asyncio.Queue()
        token = secrets.token_hex(16)
        message = Message(
            encode(envelope.data),
            headers=dict(to_headers(replace(envelope, reply_to=None, stream=envelope.stream and wait))),
            content_type="application/json",
            message_id=envelope.id,
            correlation_id=token,
            reply_to=_DIRECT if wait else None,
        )
        if wait:
            self._pending[token] = answers
        try:
            await self._connection.send(self._options.stream, message)
        except BaseException:
            self._pending.pop(token, None)
            raise
        return self._replies(token, answers, wait)

    async def _replies(
        self, token: str, answers: asyncio.Queue[Reply | None], wait: bool
    ) -> AsyncGenerator[Reply, None]:
        try:
            while wait:
                reply = await answers.get()
                if reply is None:
                    raise BrokerUnavailable("RabbitMQ: the connection was closed before the answer arrived")
                yield reply
                wait = reply.kind == "chunk"
        finally:
            self._pending.pop(token, None)

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        answers = self._pending.get(message.correlation_id or "")
        if answers is not None:
            headers: Any = message.headers
            answers.put_nowait(
                Reply(
                    kind=headers[KIND],
                    body=json.loads(message.body),
                    chunk=int(headers.get(CHUNK, 0)),
                    attempt=int(headers[ATTEMPT]),
                )
            )

    def _on_close(self, *_: Any) -> None:
        for answers in self._pending.values():
            answers.put_nowait(None)

    async def close(self) -> None:
        """Disconnect (``Submitter.close``)."""
        await self._connection.close()
