"""The Kafka source: requests from a topic shared by a consumer group, answers to another topic, keyed by id.

A group commits one offset per partition. Several messages of a partition are processed concurrently, and the committed
offset is that of the first unsettled one; so if a worker dies, the messages behind it are redelivered, too. Readers of
answers keep the first answer of each key.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from runtime.errors import PayloadTooLarge
from runtime.events.envelope import REASON, Envelope
from runtime.events.message import read
from runtime.events.outcome import Outcome, Reject, Retry
from runtime.events.queues.base import BrokerAdapter, BrokerUnavailable, QueueOptions
from runtime.events.queues.headers import about, again, answer, answer_to, dead, earlier, given_id
from runtime.events.queues.kafka.connection import SECONDS, Sender, broker_errors, client_options, ensure_topics, texts
from runtime.events.queues.kafka.offsets import Offsets
from runtime.events.queues.kafka.submitter import KafkaSubmitter

NAMES = ("warmstart.requests", "warmstart.results", "warmstart.dead")
REPLY_PREFIXES = ("warmstart.replies",)

DELAY = "Warmstart-Delay"
"""The header with a retry's delay in seconds. A worker holds the message for so long by its own clock."""

_HELD = 1000  # maximum number of held messages; no more are read meanwhile
_LONGEST_DELAY = 3600.0
_DELAY = re.compile(r"[0-9]{1,6}(\.[0-9]{1,9})?")
_TELL_SECONDS = 2.0
_NEVER = 86_400_000  # ms between fetches after which the library leaves the group: a busy worker is still alive


class KafkaSource(ConsumerRebalanceListener):  # type: ignore[misc]  # the library has no types
    """The ``Source`` for Kafka.

    Raises:
        SettingsError: the URL is invalid.
    """

    def __init__(self, options: QueueOptions) -> None:
        self.name = f"kafka:{options.stream}"
        self.options = options
        self.sender = Sender(options.url)
        self._consumer: AIOKafkaConsumer | None = None
        self._broken = False
        self._offsets: dict[TopicPartition, Offsets] = {}
        self._unsorted: list[Any] = []
        self._held: list[tuple[float, KafkaDelivery]] = []
        self._assigned = asyncio.Event()
        self._committing = asyncio.Lock()

    async def open(self) -> None:
        """Create missing topics and join the consumer group; a working consumer is kept (``Source.open``)."""
        if self._consumer is not None and not self._broken:
            await self._check(self._consumer)
            return
        await self.close()
        await ensure_topics(self.options)
        await self.sender.start()
        session = int(self.options.ack_seconds * 1000)
        self._consumer = AIOKafkaConsumer(
            **client_options(self.options.url),
            group_id=self.options.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            session_timeout_ms=session,
            heartbeat_interval_ms=min(3000, session // 3),
            max_poll_interval_ms=_NEVER,
        )
        self._consumer.subscribe([self.options.stream], listener=self)
        self._broken = True
        with broker_errors():
            await self._consumer.start()
        self._broken = False

    async def fetch(self, most: int, seconds: float) -> Sequence[KafkaDelivery]:
        """Read messages, and return those whose delay is over (``Source.fetch``)."""
        consumer = self._open()
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not (due := self._due(most)):
            now = loop.time()
            if now >= end:
                await self._check(consumer)
                break
            until = min([end, *(due for due, _ in self._held)])
            if len(self._held) < _HELD:
                await self._read(consumer, most, until - now)
            else:
                await asyncio.sleep(until - now)
        return due

    async def _read(self, consumer: AIOKafkaConsumer, most: int, seconds: float) -> None:
        """Read messages into ``_held``.

        They are stored there because the caller may be cancelled, and a message that was read is not read again.
        """
        try:
            with broker_errors():
                found = await consumer.getmany(timeout_ms=int(seconds * 1000) + 1, max_records=most)
                self._unsorted += [record for records in found.values() for record in records]
        except BrokerUnavailable:
            self._broken = True
            raise
        if self._unsorted:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._assigned.wait()
            self._sort()

    def _sort(self) -> None:
        """Move the new messages of this worker's partitions to ``_held``, with the times at which they are due."""
        if not self._assigned.is_set():
            return
        now = asyncio.get_running_loop().time()
        for record in self._unsorted:
            offsets = self._offsets.get(TopicPartition(record.topic, record.partition))
            if offsets is not None and offsets.take(record.offset):
                delivery = KafkaDelivery(self, record, offsets)
                self._held.append((now + delivery.delay, delivery))
        self._unsorted = []

    def _due(self, most: int) -> list[KafkaDelivery]:
        now = asyncio.get_running_loop().time()
        kept = sorted((held for held in self._held if not held[1].offsets.lost), key=lambda held: held[0])
        due = [delivery for time, delivery in kept[:most] if time <= now]
        self._held = kept[len(due) :]
        return due

    async def commit(self) -> None:
        """Commit each partition's safe offset. A call that waits for another's commit may find nothing left to do.

        Raises:
            BrokerUnavailable: the offsets may not be committed.
        """
        async with self._committing:
            consumer = self._open()
            mine = consumer.assignment()
            wanted = {
                partition: offsets.safe
                for partition, offsets in self._offsets.items()
                if partition in mine and offsets.safe != offsets.committed
            }
            if not wanted:
                return
            with broker_errors():
                try:
                    await consumer.commit(wanted)
                except (CommitFailedError, IllegalStateError):
                    return  # rebalance: the new owner commits, or gets cached responses
            for partition, offset in wanted.items():
                self._offsets[partition].committed = offset

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Commit before a rebalance; the library calls this."""
        self._assigned.clear()
        with suppress(BrokerUnavailable):
            await self.commit()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Take over the assigned partitions after a rebalance; the library calls this.

        Messages of a partition that this worker keeps stay in progress, unless another worker had it in between.
        """
        consumer, offsets = self._open(), dict[TopicPartition, Offsets]()
        for partition in assigned:
            committed = None
            with suppress(KafkaError):
                committed = await consumer.committed(partition)
            kept = self._offsets.get(partition)
            stays = kept is not None and kept.committed == committed
            offsets[partition] = kept if kept is not None and stays else Offsets(committed, committed or 0)
        for partition, before in self._offsets.items():
            before.lost = offsets.get(partition) is not before
        self._offsets = offsets
        self._assigned.set()

    async def lag(self) -> int | None:
        """Return the number of unread messages in this worker's partitions (``Source.lag``).

        The group's lag is the sum over all workers.
        """
        consumer = self._open()
        mine = list(consumer.assignment())
        with broker_errors():
            async with asyncio.timeout(SECONDS):
                ends = await consumer.end_offsets(mine) if mine else {}
                waiting = [int(end - await consumer.position(partition)) for partition, end in ends.items()]
        return sum(max(0, messages) for messages in waiting)

    async def close(self) -> None:
        """Leave the group and disconnect (``Source.close``)."""
        consumer, self._consumer = self._consumer, None
        for offsets in self._offsets.values():
            offsets.lost = True
        self._offsets, self._unsorted, self._held = {}, [], []
        self._assigned.clear()
        if consumer is not None:
            with suppress(KafkaError, OSError):
                async with asyncio.timeout(SECONDS):
                    await consumer.stop()
        await self.sender.stop()

    def _open(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise BrokerUnavailable("Kafka: not connected")
        return self._consumer

    async def _check(self, consumer: AIOKafkaConsumer) -> None:
        """Raise if the brokers do not answer: the library reports no error, only an empty fetch."""
        with broker_errors():
            async with asyncio.timeout(SECONDS):
                await consumer.topics()


class KafkaDelivery:
    """The ``Delivery`` of a Kafka record."""

    def __init__(self, source: KafkaSource, record: Any, offsets: Offsets) -> None:
        self._source = source
        self._record = record
        self._options = source.options
        self._headers = texts(record.headers)
        self._answered = False
        self.offsets = offsets

    @property
    def delay(self) -> float:
        """The seconds to hold the message before it is processed, 3600 at most; 0 for a dead letter put back."""
        asked = self._headers.get(DELAY, "")
        return min(_LONGEST_DELAY, float(asked)) if _DELAY.fullmatch(asked) and REASON not in self._headers else 0.0

    @property
    def attempt(self) -> int:
        """The number of deliveries so far, including this one, from the message's header.

        Kafka does not count deliveries: a redelivery after a worker's death is not included.
        """
        return 1 + earlier(self._headers)

    @property
    def _place(self) -> str:
        return f"{self._record.topic}:{self._record.partition}:{self._record.offset}"

    def envelope(self) -> Envelope:
        """Parse the message (``Delivery.envelope``).

        The key is not the id, because keys group related messages. ``stream`` is False, because chunks are not sent
        through topics.
        """
        envelope = read(
            self._record.value or b"",
            self._headers,
            id=self._place,
            source=self._source.name,
            operation=self._options.operation,
            attempt=self.attempt,
        )
        return replace(answer_to(envelope, self._options), stream=False)

    async def extend(self) -> None:
        """Check that the partition is still assigned to this worker (``Delivery.extend``).

        There is nothing to send: the library's heartbeats keep the partition.
        """
        if self.offsets.lost:
            raise BrokerUnavailable("Kafka: the partition is another worker's now")

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
        await self._source.commit()

    async def _send(self, envelope: Envelope | None, outcome: Outcome) -> None:
        id = given_id(self._headers, self._place) if envelope is None else envelope.id
        if isinstance(outcome, Retry):
            delay = f"{outcome.delay:.3f}" if outcome.delay > 0 else None
            await self._copy(self._options.stream, again(id, self.attempt) | {DELAY: delay})
            return
        if isinstance(outcome, Reject):
            await self._copy(self._options.dead, dead(id, self.attempt, outcome.reason) | {DELAY: None})
        kind, body = answer(outcome)
        headers = about(id, kind, self.attempt)
        await self._source.sender.send(self._options.results, id.encode(), body, headers)
        if envelope is not None and envelope.reply_to is not None:
            with suppress(BrokerUnavailable, TimeoutError):  # the results topic has it; this is for a waiting client
                async with asyncio.timeout(_TELL_SECONDS):
                    await self._source.sender.send(envelope.reply_to, id.encode(), body, headers)

    async def _copy(self, topic: str, changes: Mapping[str, str | None]) -> None:
        """Send the message to a topic with changed headers."""
        replaced = {name.lower() for name in changes}
        headers: dict[str, str | bytes] = {
            name: value
            for name, value in self._record.headers or ()
            if name.lower() not in replaced and value is not None
        }
        headers |= {name: value for name, value in changes.items() if value is not None}
        await self._source.sender.send(topic, self._record.key, self._record.value, headers)


ADAPTER = BrokerAdapter(KafkaSource, KafkaSubmitter, names=NAMES, reply_prefixes=REPLY_PREFIXES)
