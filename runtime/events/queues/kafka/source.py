"""The Kafka source: requests from a topic shared by a consumer group, answers to another topic, keyed by id.

A group commits one offset per partition. Several messages of a partition are processed concurrently, and the committed
offset is that of the first unsettled one; so if a worker dies, the messages behind it are redelivered, too. Readers of
answers keep the first answer of each key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from runtime.events.envelope import TYPE_PREFIX
from runtime.events.queues.base import BrokerAdapter, BrokerUnavailable, QueueOptions
from runtime.events.queues.kafka.connection import SECONDS, Sender, broker_errors, client_options, ensure_topics
from runtime.events.queues.kafka.delivery import KafkaDelivery, source_name
from runtime.events.queues.kafka.offsets import Offsets
from runtime.events.queues.kafka.submitter import KafkaSubmitter

NAMES = (f"{TYPE_PREFIX}requests", f"{TYPE_PREFIX}results", f"{TYPE_PREFIX}dead")
REPLY_PREFIXES = (f"{TYPE_PREFIX}replies",)

_MAX_HELD = 1000  # messages whose delay is not over; no more are read meanwhile
_MAX_POLL_INTERVAL = 86_400_000  # ms between fetches after which the library leaves the group; a busy worker is alive


class KafkaSource(ConsumerRebalanceListener):  # type: ignore[misc]  # the library has no types
    """The ``Source`` for Kafka.

    Raises:
        SettingsError: the URL is invalid.
    """

    def __init__(self, options: QueueOptions) -> None:
        self.name = source_name(options)
        self.options = options
        self.sender = Sender(options.url)
        self._consumer: AIOKafkaConsumer | None = None
        self._broken = False
        self._offsets: dict[TopicPartition, Offsets] = {}
        self._unassigned: list[Any] = []
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
            max_poll_interval_ms=_MAX_POLL_INTERVAL,
        )
        self._consumer.subscribe([self.options.stream], listener=self)
        self._broken = True
        with broker_errors():
            await self._consumer.start()
        self._broken = False

    async def fetch(self, max_messages: int, wait_seconds: float) -> Sequence[KafkaDelivery]:
        """Read messages, and return those whose delay is over (``Source.fetch``)."""
        consumer = self._joined_consumer()
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_seconds
        while not (due := self._take_due(max_messages)):
            now = loop.time()
            if now >= end:
                await self._check(consumer)
                break
            until = min([end, *(due for due, _ in self._held)])
            if len(self._held) < _MAX_HELD:
                await self._read(consumer, max_messages, until - now)
            else:
                await asyncio.sleep(until - now)
        return due

    async def _read(self, consumer: AIOKafkaConsumer, max_messages: int, seconds: float) -> None:
        """Read messages into ``_held``.

        They are stored there because the caller may be cancelled, and a message that was read is not read again.
        """
        try:
            with broker_errors():
                fetched = await consumer.getmany(timeout_ms=int(seconds * 1000) + 1, max_records=max_messages)
                self._unassigned += [record for records in fetched.values() for record in records]
        except BrokerUnavailable:
            self._broken = True
            raise
        if self._unassigned:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._assigned.wait()
            self._hold_records()

    def _hold_records(self) -> None:
        """Move the new messages of this worker's partitions to ``_held``, with the times at which they are due."""
        if not self._assigned.is_set():
            return
        now = asyncio.get_running_loop().time()
        for record in self._unassigned:
            offsets = self._offsets.get(TopicPartition(record.topic, record.partition))
            if offsets is not None and offsets.take(record.offset):
                delivery = KafkaDelivery(record, offsets, self.options, self.sender, self.commit)
                self._held.append((now + delivery.delay, delivery))
        self._unassigned = []

    def _take_due(self, max_messages: int) -> list[KafkaDelivery]:
        now = asyncio.get_running_loop().time()
        kept = sorted((held for held in self._held if not held[1].offsets.lost), key=lambda held: held[0])
        due = [delivery for time, delivery in kept[:max_messages] if time <= now]
        self._held = kept[len(due) :]
        return due

    async def commit(self) -> None:
        """Commit each partition's safe offset. A call that waits for another's commit may find nothing left to do.

        Raises:
            BrokerUnavailable: the offsets may not be committed.
        """
        async with self._committing:
            consumer = self._joined_consumer()
            assigned = consumer.assignment()
            uncommitted = {
                partition: offsets.safe
                for partition, offsets in self._offsets.items()
                if partition in assigned and offsets.safe != offsets.committed
            }
            if not uncommitted:
                return
            with broker_errors():
                try:
                    await consumer.commit(uncommitted)
                except (CommitFailedError, IllegalStateError):
                    return  # rebalance: the new owner commits, or gets cached responses
            for partition, offset in uncommitted.items():
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
        consumer, offsets = self._joined_consumer(), dict[TopicPartition, Offsets]()
        for partition in assigned:
            committed = None
            with suppress(KafkaError):
                committed = await consumer.committed(partition)
            kept = self._offsets.get(partition)
            unchanged = kept is not None and kept.committed == committed
            offsets[partition] = kept if kept is not None and unchanged else Offsets(committed, committed or 0)
        for partition, before in self._offsets.items():
            before.lost = offsets.get(partition) is not before
        self._offsets = offsets
        self._assigned.set()

    async def lag(self) -> int | None:
        """Return the number of unread messages in this worker's partitions (``Source.lag``).

        The group's lag is the sum over all workers.
        """
        consumer = self._joined_consumer()
        assigned = list(consumer.assignment())
        with broker_errors():
            async with asyncio.timeout(SECONDS):
                ends = await consumer.end_offsets(assigned) if assigned else {}
                waiting = [int(end - await consumer.position(partition)) for partition, end in ends.items()]
        return sum(max(0, messages) for messages in waiting)

    async def close(self) -> None:
        """Leave the group and disconnect (``Source.close``)."""
        consumer, self._consumer = self._consumer, None
        for offsets in self._offsets.values():
            offsets.lost = True
        self._offsets, self._unassigned, self._held = {}, [], []
        self._assigned.clear()
        if consumer is not None:
            with suppress(KafkaError, OSError):
                async with asyncio.timeout(SECONDS):
                    await consumer.stop()
        await self.sender.stop()

    def _joined_consumer(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise BrokerUnavailable("Kafka: not connected")
        return self._consumer

    async def _check(self, consumer: AIOKafkaConsumer) -> None:
        """Raise if the brokers do not answer: the library reports no error, only an empty fetch."""
        with broker_errors():
            async with asyncio.timeout(SECONDS):
                await consumer.topics()


ADAPTER = BrokerAdapter(KafkaSource, KafkaSubmitter, names=NAMES, reply_prefixes=REPLY_PREFIXES)
