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

from runtime.events.envelope import ATTEMPT, CHUNK, KIND, Envelope, encode, headers
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
        self._link = RabbitMQConnection(options)
        self._waiting: dict[str, asyncio.Queue[Reply | None]] = {}

    async def open(self) -> None:
        """Connect, create the request queue if it is missing, and consume direct replies (``Submitter.open``)."""
        await self._link.connect()
        await self._link.ensure(answers=False)
        channel = self._link.sending  # direct replies come to the channel that sent the request
        queue = await self._link.call(channel.get_queue(_DIRECT, ensure=False))
        await self._link.call(queue.consume(self._heard, no_ack=True, timeout=SECONDS))
        channel.close_callbacks.add(self._ended)

    async def submit(self, envelope: Envelope, *, wait: bool) -> AsyncGenerator[Reply, None]:
        """Send the request, and return its replies (``Submitter.submit``)."""
        answers: asyncio.Queue[Reply | None] = asyncio.Queue()
        token = secrets.token_hex(16)
        message = Message(
            encode(envelope.data),
            headers=dict(headers(replace(envelope, reply_to=None, stream=envelope.stream and wait))),
            content_type="application/json",
            message_id=envelope.id,
            correlation_id=token,
            reply_to=_DIRECT if wait else None,
        )
        if wait:
            self._waiting[token] = answers
        try:
            await self._link.send(self._options.stream, message)
        except BaseException:
            self._waiting.pop(token, None)
            raise
        return self._replies(token, answers, wait)

    async def _replies(
        self, token: str, answers: asyncio.Queue[Reply | None], wait: bool
    ) -> AsyncGenerator[Reply, None]:
        try:
            while wait:
                reply = await answers.get()
                if reply is None:
                    raise BrokerUnavailable("RabbitMQ: the connection ended before the answer came")
                yield reply
                wait = reply.kind == "chunk"
        finally:
            self._waiting.pop(token, None)

    async def _heard(self, message: AbstractIncomingMessage) -> None:
        answers = self._waiting.get(message.correlation_id or "")
        if answers is not None:
            found: Any = message.headers
            answers.put_nowait(
                Reply(
                    kind=found[KIND],
                    body=json.loads(message.body),
                    chunk=int(found.get(CHUNK, 0)),
                    attempt=int(found[ATTEMPT]),
                )
            )

    def _ended(self, *_: Any) -> None:
        for answers in self._waiting.values():
            answers.put_nowait(None)

    async def close(self) -> None:
        """Disconnect (``Submitter.close``)."""
        await self._link.close()
