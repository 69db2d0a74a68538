"""The NATS JetStream source: requests from a durable consumer, answers to a stream that stores one per id.

An answer is stored before its message is acknowledged. If a worker dies in between, the message is redelivered, and the
stream refuses the second answer, however late it comes.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from runtime.errors import InvalidRequest, PayloadTooLarge
from runtime.events import envelope as names
from runtime.events.envelope import Envelope, encode
from runtime.events.message import read
from runtime.events.outcome import Ack, Outcome, Reject, Retry
from runtime.events.queues.base import BrokerAdapter, BrokerUnavailable, QueueOptions
from runtime.events.queues.headers import answer_id
from runtime.events.queues.nats.connection import REQUEST_SECONDS, NatsConnection, broker_errors, check
from runtime.events.queues.nats.streams import (
    MSG_ID,
    answers_config,
    check_names,
    ensure_consumer,
    ensure_stream,
    max_body_bytes,
    requests_config,
    send_once,
)
from runtime.events.queues.nats.submitter import NatsSubmitter

NAMES = ("WARMSTART", "WARMSTART_RESULTS", "WARMSTART_DEAD")
REPLY_PREFIXES = ("_INBOX.", names.TYPE_PREFIX)

_PULL_SECONDS = 1.0
"""The expiry of a pull request. It cannot be cancelled, so it is short: a stopping worker has to wait for its end."""

_LATE_SECONDS = 0.5
"""How long after its expiry a pull request counts as forgotten by the server, if the connection answers a ping."""

_EMPTY_PULL_PAUSE = 0.1
_NO_MESSAGE_STATUSES = ("404", "408")  # statuses of a pull request: there are no messages, or none came in time
_HEADER = re.compile(r"(?!nats-)[!#$%&'*+\-.^_`|~0-9a-z]+", re.IGNORECASE)  # the server would act on Nats- headers
_REPLY_TO = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")


class NatsSource:
    """The ``Source`` for NATS JetStream. The options name streams; a stream has the subjects that begin with its name.

    Raises:
        SettingsError: the URL or a name is invalid.
    """

    def __init__(self, options: QueueOptions) -> None:
        check_names(options)
        self.name = f"nats:{options.stream}"
        self.connection = NatsConnection(options.url)
        self.options = options
        self._return_tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connect, and create the streams and the consumer if they are missing (``Source.open``)."""
        options = self.options
        await self.connection.open()
        await ensure_stream(self.connection, requests_config(options.stream), options.create)
        await ensure_stream(self.connection, answers_config(options.results, options.results_seconds), options.create)
        await ensure_stream(self.connection, answers_config(options.dead, 0), options.create)
        await ensure_consumer(self.connection, options)

    async def fetch(self, max_messages: int, wait_seconds: float) -> Sequence[NatsDelivery]:
        """Pull messages from the consumer (``Source.fetch``).

        Messages that arrive after a cancellation are returned to the queue at once. A forgotten pull request is
        repeated; if that is forgotten as well, there is no consumer.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_seconds
        forgotten = False
        while True:
            pull = asyncio.create_task(self._pull(max_messages, min(_PULL_SECONDS, max(0.01, end - loop.time()))))
            try:
                deliveries = await asyncio.shield(pull)
            except asyncio.CancelledError:
                task = asyncio.create_task(_return_messages(pull))
                self._return_tasks.add(task)
                task.add_done_callback(self._return_tasks.discard)
                raise
            if deliveries is None:
                if forgotten:
                    raise BrokerUnavailable(f"NATS does not answer requests for messages of {self.options.group}")
                forgotten = True
            elif deliveries or loop.time() >= end:
                return deliveries
            else:
                forgotten = False

    async def _pull(self, max_messages: int, seconds: float) -> list[NatsDelivery] | None:
        """Send one pull request, and receive until the server says that it has ended, so that no message comes later.

        "No wait" with an expiry waits for the first message, and then takes only those that are there (NATS ADR-13).

        Returns:
            The messages; None if the server has forgotten the request. Servers before 2.9.16 do so when a message
            arrives between the request's expiry and the timer that reports it (``nextWaiting`` in their consumer.go).
            The answer is also missing if the consumer was deleted.
        """
        client = await self.connection.client()
        inbox = client.new_inbox()
        subscription = await self.connection.subscribe(inbox)
        request = {"batch": max_messages, "expires": int(seconds * 1e9), "no_wait": True}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.options.stream}.{self.options.group}"
        deliveries: list[NatsDelivery] = []
        end = asyncio.get_running_loop().time() + seconds - _EMPTY_PULL_PAUSE
        try:
            with broker_errors():
                await client.publish(subject, json.dumps(request).encode(), reply=inbox)
                while len(deliveries) < max_messages:
                    try:
                        message = await subscription.next_msg(timeout=seconds + _LATE_SECONDS)
                    except nats.errors.TimeoutError:
                        await check(client)  # what the server sent before its pong is here now
                        if subscription.pending_msgs or client.is_closed:
                            continue
                        return deliveries or None
                    status = None if message.reply else (message.headers or {}).get("Status")
                    if status is None:
                        deliveries.append(NatsDelivery(self, message))
                    elif status in _NO_MESSAGE_STATUSES:
                        if not deliveries and asyncio.get_running_loop().time() < end:
                            await asyncio.sleep(_EMPTY_PULL_PAUSE)  # other workers' requests take all messages
                        break
                    else:
                        raise nats.errors.Error(f"no messages: {dict(message.headers or {})}")
        except BrokerUnavailable:
            if not deliveries:
                raise
        finally:
            with suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()
        return deliveries

    async def lag(self) -> int | None:
        """Return the number of messages not delivered to the consumer yet (``Source.lag``)."""
        js = await self.connection.jetstream()
        with broker_errors():
            pending = (await js.consumer_info(self.options.stream, self.options.group)).num_pending
        return None if pending is None else int(pending)

    async def close(self) -> None:
        """Return the messages of cancelled fetches, and disconnect (``Source.close``)."""
        if self._return_tasks:
            await asyncio.wait(self._return_tasks, timeout=_PULL_SECONDS + REQUEST_SECONDS)
        await self.connection.close()


class NatsDelivery:
    """The ``Delivery`` of a JetStream message."""

    def __init__(self, source: NatsSource, message: Msg) -> None:
        self._source = source
        self._message = message
        self._options = source.options
        self._connection = source.connection
        self._headers = {str(name): str(value) for name, value in (message.headers or {}).items()}

    @property
    def attempt(self) -> int:
        """The number of deliveries so far, including this one, as the server counts them."""
        return self._message.metadata.num_delivered

    @property
    def _position(self) -> str:
        return f"{self._options.stream}:{self._message.metadata.sequence.stream}"

    def envelope(self) -> Envelope:
        """Parse the message (``Delivery.envelope``).

        Without a header, the operation is that of the subject ``<stream>.<operation>``, or else the one in the options.
        """
        options = self._options
        root, _, last_token = self._message.subject.partition(".")
        envelope = read(
            self._message.data,
            self._headers,
            id=self._headers.get(MSG_ID, self._position),
            source=self._source.name,
            operation=last_token if root == options.stream and "." not in last_token else options.operation,
            attempt=self.attempt,
            reply_prefixes=options.reply_prefixes,
            own_prefixes=tuple(f"{name}." for name in (options.stream, options.results, options.dead)),
        )
        if envelope.reply_to is not None and not _REPLY_TO.fullmatch(envelope.reply_to):
            raise InvalidRequest("reply_to: it must be a subject without wildcards", param="reply_to")
        return envelope

    async def extend(self) -> None:
        """Restart the acknowledgement timeout (``+WPI``, ``Delivery.extend``)."""
        await self._acknowledge(b"+WPI")

    async def send_chunk(self, envelope: Envelope, number: int, chunk: Mapping[str, Any]) -> None:
        """Publish a chunk to the reply subject, if there is one (``Delivery.send_chunk``)."""
        if envelope.reply_to is not None:
            headers = self._answer_headers(envelope) | {names.KIND: "chunk", names.CHUNK: str(number)}
            await self._connection.publish(envelope.reply_to, encode(chunk), headers)

    async def settle(self, envelope: Envelope | None, outcome: Outcome) -> None:
        """Store the answer and acknowledge the message, or send a NAK with the retry's delay (``Delivery.settle``)."""
        if isinstance(outcome, Retry):
            await self._acknowledge(b"-NAK " + json.dumps({"delay": int(outcome.delay * 1e9)}).encode())
            return
        if isinstance(outcome, Ack):
            body = encode(outcome.result)
            limit = await max_body_bytes(self._connection, self._answer_headers(envelope) | {names.KIND: "result"})
            if len(body) > limit:
                message = f"the answer has {len(body)} bytes; the NATS server accepts at most {limit} (max_payload)"
                outcome = Reject(PayloadTooLarge(message))
        if isinstance(outcome, Ack):
            await self._send_answer(envelope, "result", body)
            await self._acknowledge(b"+ACK")
        else:
            await self._dead_letter(envelope, outcome)
            await self._send_answer(envelope, "error", encode(outcome.error.openai()))
            await self._acknowledge(b"+TERM")

    async def _send_answer(self, envelope: Envelope | None, kind: str, body: bytes) -> None:
        headers = self._answer_headers(envelope) | {names.KIND: kind}
        await send_once(self._connection, self._options.results, headers[names.ID], body, headers)
        if envelope is not None and envelope.reply_to is not None:
            with suppress(BrokerUnavailable):  # the answer is in the stream; this copy is for a waiting client
                await self._connection.publish(envelope.reply_to, body, headers)

    async def _dead_letter(self, envelope: Envelope | None, outcome: Reject) -> None:
        """Store the message as a dead letter, without its own headers or cut off if it is too large."""
        added_headers = self._answer_headers(envelope) | {names.REASON: outcome.reason}
        sender_headers = {name: value for name, value in self._headers.items() if _HEADER.fullmatch(name)}
        replaced = {name.lower() for name in added_headers}
        headers = {
            name: value for name, value in sender_headers.items() if name.lower() not in replaced
        } | added_headers
        body = self._message.data
        if await max_body_bytes(self._connection, headers) < len(body):
            headers = added_headers  # the message is near the maximum size
        body = body[: await max_body_bytes(self._connection, headers)]
        await send_once(self._connection, self._options.dead, headers[names.ID], body, headers)

    def _answer_headers(self, envelope: Envelope | None) -> dict[str, str]:
        headers = {names.ID: self._id(envelope), names.ATTEMPT: str(self.attempt)}
        return headers if envelope is None else {**headers, names.OPERATION: envelope.operation}

    def _id(self, envelope: Envelope | None) -> str:
        """Return the answer's id: the envelope's, else the sender's, else the message's position in the stream."""
        if envelope is not None:
            return envelope.id
        return answer_id(self._headers, self._headers.get(MSG_ID, "")) or self._position

    async def _acknowledge(self, word: bytes) -> None:
        """Send an acknowledgement of this type, and wait for the server's confirmation.

        Raises:
            BrokerUnavailable: the server may not have received it.
        """
        await self._connection.request(self._message.reply, word)


async def _return_messages(pull: asyncio.Task[list[NatsDelivery] | None]) -> None:
    """Give back (NAK) the messages that a cancelled pull had fetched."""
    with suppress(BrokerUnavailable):  # then the server redelivers them after ``ack_seconds``
        for delivery in await pull or ():
            await delivery._acknowledge(b"-NAK")


ADAPTER = BrokerAdapter(NatsSource, NatsSubmitter, names=NAMES, reply_prefixes=REPLY_PREFIXES)
