"""One message of Kafka: its envelope, its delay, and the answer, retry or dead letter that settles it.

Kafka neither delays messages nor counts deliveries: a retry is a copy of the message at the topic's end, with the delay
and the number of deliveries in its headers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from runtime.errors import PayloadTooLarge
from runtime.events.envelope import REASON, Envelope
from runtime.events.message import read
from runtime.events.outcome import Outcome, Reject, Retry
from runtime.events.queues.base import BrokerUnavailable, QueueOptions
from runtime.events.queues.headers import (
    answer_headers,
    answer_id,
    dead_letter_headers,
    earlier_deliveries,
    encode_answer,
    retry_headers,
)
from runtime.events.queues.kafka.connection import Sender, decode_headers
from runtime.events.queues.kafka.offsets import Offsets

DELAY = "Warmstart-Delay"
"""The header with a retry's delay in seconds. A worker holds the message for so long by its own clock."""

_MAX_DELAY_SECONDS = 3600.0
_DELAY = re.compile(r"[0-9]{1,6}(\.[0-9]{1,9})?")
_REPLY_SECONDS = 2.0  # timeout of the copy for a waiting client; the results topic has the answer anyway


def source_name(options: QueueOptions) -> str:
    """Return the source's name in logs and envelopes."""
    return f"kafka:{options.stream}"


class KafkaDelivery:
    """The ``Delivery`` of a Kafka record.

    Args:
        record: the record, as the client library returns it.
        offsets: the offsets of the record's partition.
        options: the queue's options.
        sender: sends answers, retries and dead letters.
        commit: commits the offsets of settled messages; raises ``BrokerUnavailable`` if that fails.
    """

    def __init__(
        self,
        record: Any,
        offsets: Offsets,
        options: QueueOptions,
        sender: Sender,
        commit: Callable[[], Awaitable[None]],
    ) -> None:
        self._record = record
        self.offsets = offsets
        self._options = options
        self._sender = sender
        self._commit = commit
        self._headers = decode_headers(record.headers)
        self._answered = False

    @property
    def delay(self) -> float:
        """The seconds to hold the message before it is processed, 3600 at most; 0 for a dead letter put back."""
        seconds = self._headers.get(DELAY, "")
        return (
            min(_MAX_DELAY_SECONDS, float(seconds))
            if _DELAY.fullmatch(seconds) and REASON not in self._headers
            else 0.0
        )

    @property
    def attempt(self) -> int:
        """The number of deliveries so far, including this one, from the message's header.

        Kafka does not count deliveries: a redelivery after a worker's death is not included.
        """
        return 1 + earlier_deliveries(self._headers)

    @property
    def _position(self) -> str:
        return f"{self._record.topic}:{self._record.partition}:{self._record.offset}"

    def envelope(self) -> Envelope:
        """Parse the message (``Delivery.envelope``).

        The key is not the id, because keys group related messages. ``stream`` is False, because chunks are not sent
        through topics.
        """
        options = self._options
        envelope = read(
            self._record.value or b"",
            self._headers,
            id=self._position,
            source=source_name(options),
            operation=options.operation,
            attempt=self.attempt,
            reply_prefixes=options.reply_prefixes,
            own_prefixes=(options.stream, options.results, options.dead),
        )
        return replace(envelope, stream=False)

    async def extend(self) -> None:
        """Check that the partition is still assigned to this worker (``Delivery.extend``).

        There is nothing to send: the library's heartbeats keep the partition.
        """
        if self.offsets.lost:
            raise BrokerUnavailable("Kafka: the partition is assigned to another worker now")

    async def send_chunk(self, envelope: Envelope, number: int, chunk: Mapping[str, Any]) -> None:
        """Do nothing: envelopes from Kafka never have ``stream`` set (``Delivery.send_chunk``)."""

    async def settle(self, envelope: Envelope | None, outcome: Outcome) -> None:
        """Send the answer or a copy for the retry, then commit the offset (``Delivery.settle``)."""
        await self.extend()  # raises if the message, and so its answer, is now another worker's
        if not self._answered:
            try:
                await self._send(envelope, outcome)
            except PayloadTooLarge as error:
                await self._send(envelope, Reject(error))
            self._answered = True
            self.offsets.settle(self._record.offset)
        await self._commit()

    async def _send(self, envelope: Envelope | None, outcome: Outcome) -> None:
        id = answer_id(self._headers, self._position) if envelope is None else envelope.id
        if isinstance(outcome, Retry):
            delay = f"{outcome.delay:.3f}" if outcome.delay > 0 else None
            await self._copy(self._options.stream, retry_headers(id, self.attempt) | {DELAY: delay})
            return
        if isinstance(outcome, Reject):
            await self._copy(self._options.dead, dead_letter_headers(id, self.attempt, outcome.reason) | {DELAY: None})
        kind, body = encode_answer(outcome)
        headers = answer_headers(id, kind, self.attempt)
        await self._sender.send(self._options.results, id.encode(), body, headers)
        if envelope is not None and envelope.reply_to is not None:
            with suppress(BrokerUnavailable, TimeoutError):  # the results topic has it; this is for a waiting client
                async with asyncio.timeout(_REPLY_SECONDS):
                    await self._sender.send(envelope.reply_to, id.encode(), body, headers)

    async def _copy(self, topic: str, changes: Mapping[str, str | None]) -> None:
        """Send the message to a topic with changed headers."""
        replaced = {name.lower() for name in changes}
        headers: dict[str, str | bytes] = {
            name: value
            for name, value in self._record.headers or ()
            if name.lower() not in replaced and value is not None
        }
        headers |= {name: value for name, value in changes.items() if value is not None}
        await self._sender.send(topic, self._record.key, self._record.value, headers)
