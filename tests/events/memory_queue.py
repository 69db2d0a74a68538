"""A queue in memory, with all that a broker does: deliveries that lapse, delays, dead letters, answers sent once."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from runtime.events.envelope import ID, Envelope, encode, to_headers
from runtime.events.message import read
from runtime.events.outcome import Ack, Outcome, Reject, Retry
from runtime.events.queues.base import BrokerUnavailable, Delivery, Reply
from runtime.strict_json import loads

_POLL_SECONDS = 0.01  # interval of polling the clock, which no event announces


@dataclass
class Message:
    """One that is not settled; it may be taken from ``due`` on."""

    body: bytes
    headers: Mapping[str, str]
    attempt: int = 0
    due: float = 0.0
    held: bool = False


@dataclass
class MemoryBroker:
    """What all sources and submitters of a test share.

    Args:
        ack_seconds: a delivery that is not extended for so long may be taken by another.
        clock: seconds.
        away: every call fails while it is so.
        refuse: settlements that fail, from now on.
    """

    ack_seconds: float = 30.0
    clock: Callable[[], float] = time.monotonic
    away: bool = False
    refuse: int = 0
    failure: Exception | None = None
    messages: dict[int, Message] = field(default_factory=dict)
    answers: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Kind and body by id, as a reader sees them: the first one only."""
    sent: Counter[str] = field(default_factory=Counter)
    """How often an answer was sent, seen by the reader or not."""
    dead: dict[str, str] = field(default_factory=dict)
    """Reasons by id; of messages without one, by their number."""
    chunks: list[tuple[str, Reply]] = field(default_factory=list)
    extended: int = 0
    opened: int = 0
    fetches: int = 0
    held: int = 0
    """Deliveries that some worker has now."""
    most_held: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _numbers: Any = field(default_factory=itertools.count)

    def publish(self, body: bytes, fields: Mapping[str, str]) -> None:
        """A new message."""
        self.messages[next(self._numbers)] = Message(body, fields)
        self.changed.set()

    def put(self, operation: str, data: Mapping[str, Any], id: str, **fields: Any) -> None:
        """The same, from its parts."""
        sent = Envelope(id=id, source="", type="", operation=operation, data=dict(data), **fields)
        self.publish(encode(data), to_headers(sent))

    def check(self) -> None:
        """Raise what a broker that is away makes a client raise."""
        if self.away:
            raise BrokerUnavailable("connection refused")

    def waiting(self, most: int | None = None) -> list[int]:
        """Messages that may be taken now, or the first of them."""
        now = self.clock()
        return list(itertools.islice((n for n, message in self.messages.items() if message.due <= now), most))

    def hold(self, message: Message, held: bool) -> None:
        """Somebody has it, or gives it back."""
        self.held += held - message.held
        message.held = held
        self.most_held = max(self.most_held, self.held)


class MemorySource:
    """See ``runtime.events.queues.base.Source``."""

    name = "memory:requests"

    def __init__(self, broker: MemoryBroker, operation: str | None = None) -> None:
        self.broker = broker
        self.operation = operation
        self.closed = False

    async def open(self) -> None:
        self.broker.check()
        if self.broker.failure is not None:
            raise self.broker.failure
        self.broker.opened += 1

    async def fetch(self, max_messages: int, wait_seconds: float) -> Sequence[Delivery]:
        broker = self.broker
        broker.fetches += 1
        end = time.monotonic() + wait_seconds
        while not (numbers := broker.waiting(max_messages)) and time.monotonic() < end:
            broker.check()
            broker.changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(broker.changed.wait(), _POLL_SECONDS)
        broker.check()
        found = []
        for number in numbers:
            message = broker.messages[number]
            message.attempt += 1
            message.due = broker.clock() + broker.ack_seconds
            broker.hold(message, True)
            found.append(MemoryDelivery(broker, number, message, message.attempt, self.operation))
        return found

    async def lag(self) -> int | None:
        self.broker.check()
        return len(self.broker.waiting())

    async def close(self) -> None:
        self.closed = True


@dataclass
class MemoryDelivery:
    """See ``runtime.events.queues.base.Delivery``."""

    broker: MemoryBroker
    number: int
    message: Message
    attempt: int
    operation: str | None

    def envelope(self) -> Envelope:
        return read(
            self.message.body,
            self.message.headers,
            id=f"requests:{self.number}",
            source=MemorySource.name,
            operation=self.operation,
            attempt=self.attempt,
        )

    async def extend(self) -> None:
        self.broker.check()
        self.broker.extended += 1
        self.message.due = self.broker.clock() + self.broker.ack_seconds

    async def send_chunk(self, envelope: Envelope, number: int, chunk: Mapping[str, Any]) -> None:
        self.broker.check()
        self.broker.chunks.append((envelope.id, Reply("chunk", chunk, number, self.attempt)))
        self.broker.changed.set()

    async def settle(self, envelope: Envelope | None, outcome: Outcome) -> None:
        self.broker.check()
        if self.broker.refuse:
            self.broker.refuse -= 1
            raise BrokerUnavailable("connection reset")
        if isinstance(outcome, Retry):
            self.broker.hold(self.message, False)
            self.message.due = self.broker.clock() + outcome.delay
            self.broker.changed.set()
            return
        name = self.message.headers.get(ID, f"requests:{self.number}") if envelope is None else envelope.id
        self.broker.sent[name] += 1
        if isinstance(outcome, Ack):
            self.broker.answers.setdefault(name, ("result", encode(outcome.result)))
        elif isinstance(outcome, Reject):
            self.broker.answers.setdefault(name, ("error", encode(outcome.error.openai())))
            self.broker.dead.setdefault(name, outcome.reason)
        self.broker.hold(self.message, False)
        self.broker.messages.pop(self.number, None)
        self.broker.changed.set()


class MemorySubmitter:
    """See ``runtime.events.queues.base.Submitter``."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.closed = False

    async def open(self) -> None:
        self.broker.check()

    async def submit(self, envelope: Envelope, *, wait: bool) -> AsyncGenerator[Reply, None]:
        self.broker.check()
        self.broker.publish(encode(envelope.data), to_headers(envelope))
        return self._replies(envelope) if wait else _nothing()

    async def _replies(self, envelope: Envelope) -> AsyncGenerator[Reply, None]:
        shown = 0
        while True:
            answer = self.broker.answers.get(envelope.id)
            for name, reply in self.broker.chunks[shown:]:
                shown += 1
                if name == envelope.id and envelope.stream:
                    yield reply
            if answer is not None:
                yield Reply("result" if answer[0] == "result" else "error", loads(answer[1]))
                return
            self.broker.check()
            await asyncio.sleep(_POLL_SECONDS)

    async def close(self) -> None:
        self.closed = True


async def _nothing() -> AsyncGenerator[Reply, None]:
    return
    yield  # a generator all the same
