"""The protocols that a broker's adapter implements: ``Source`` for workers and ``Submitter`` for clients."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from runtime.events.envelope import Envelope
from runtime.events.outcome import Outcome


class BrokerUnavailable(Exception):
    """The broker does not answer, or answers with an error. No message is lost; the exception's text is for the log."""


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """The options of a queue: the broker's URL, the names, the timeouts and the limits.

    Args:
        url: the broker's URL; may hold a password.
        stream: the name of the stream, queue or topic of requests.
        group: the consumer group; workers with the same group share the messages.
        results: the name of the stream, queue or topic of answers.
        dead: the name of the stream, queue or topic of dead letters.
        operation: the operation of messages that name none.
        ack_seconds: the visibility timeout: a delivery that is not extended for so long goes to another worker.
        results_seconds: how long the broker keeps an answer, and recognizes a duplicate of it.
        reply_prefixes: the allowed prefixes of a message's reply address; other addresses are refused.
        create: whether to create missing streams, queues, topics and groups.
    """

    url: str
    stream: str
    group: str
    results: str
    dead: str
    operation: str | None = None
    ack_seconds: float = 30.0
    results_seconds: float = 86_400.0
    reply_prefixes: tuple[str, ...] = ()
    create: bool = True


class Delivery(Protocol):
    """One message, delivered to this worker for ``ack_seconds``."""

    @property
    def attempt(self) -> int:
        """The number of deliveries of the message so far, including this one."""
        ...

    def envelope(self) -> Envelope:
        """Parse the message.

        Raises:
            InvalidRequest: the message is not a valid request.
        """
        ...

    async def extend(self) -> None:
        """Extend the delivery by another ``ack_seconds``.

        Raises:
            BrokerUnavailable: the delivery could not be extended, or now belongs to another worker.
        """
        ...

    async def send_chunk(self, envelope: Envelope, number: int, chunk: Mapping[str, Any]) -> None:
        """Send a chunk of the answer to the message's reply address, at most once and unconfirmed.

        Args:
            envelope: the delivery's envelope.
            number: the chunk's number within this attempt, from 0.
            chunk: the chunk, as the operation streams it.

        Raises:
            BrokerUnavailable: the chunk could not be sent.
        """
        ...

    async def settle(self, envelope: Envelope | None, outcome: Outcome) -> None:
        """Send the answer, if there is one, and then acknowledge the message; in this order, so that no answer is lost.

        Sending the same answer twice must not affect the readers of answers: another worker may have sent it before it
        died.

        Args:
            envelope: the delivery's envelope; None if the message could not be parsed.
            outcome: the outcome of the processing.

        Raises:
            BrokerUnavailable: the broker did not confirm; the message will be redelivered.
        """
        ...


class Source(Protocol):
    """A queue as its workers use it.

    Calls of ``fetch`` do not overlap; ``lag`` and the methods of deliveries may be called during one.
    """

    name: str
    """The source's name in logs, without a password."""

    async def open(self) -> None:
        """Connect. Also called after ``BrokerUnavailable``, for adapters that do not reconnect by themselves.

        Raises:
            BrokerUnavailable: there is no connection to the broker.
            SettingsError: the broker refuses the options, and would do so again.
        """
        ...

    async def fetch(self, max_messages: int, wait_seconds: float) -> Sequence[Delivery]:
        """Fetch waiting messages, including those that other workers have abandoned.

        Args:
            max_messages: the maximum number of messages.
            wait_seconds: how long to wait if there are none.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        ...

    async def lag(self) -> int | None:
        """Return the number of messages that no worker of the group has received yet; None if the broker cannot tell.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        ...

    async def close(self) -> None:
        """Disconnect; called once all deliveries are settled. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """A chunk of an answer, or the whole answer.

    Args:
        kind: ``chunk``, or for the last reply ``result`` or ``error``.
        body: the operation's answer, or OpenAI's error object.
        chunk: the chunk's number within the attempt, from 0.
        attempt: the number of the delivery that it belongs to. A new delivery streams its answer from the start.
    """

    kind: Literal["chunk", "result", "error"]
    body: Mapping[str, Any]
    chunk: int = 0
    attempt: int = 1


class Submitter(Protocol):
    """A queue as its clients use it."""

    async def open(self) -> None:
        """Connect, and create the queue if it is missing and the options say so.

        Raises:
            BrokerUnavailable: there is no connection to the broker.
            SettingsError: the broker refuses the options, and would do so again.
        """
        ...

    async def submit(self, envelope: Envelope, *, wait: bool) -> AsyncGenerator[Reply, None]:
        """Send a request.

        Args:
            envelope: the request. Its ``reply_to`` is ignored; the adapter uses its own reply address if it needs one.
            wait: whether to wait for the answer.

        Returns:
            Once the broker has accepted the message: the replies, with chunks before the answer if ``envelope.stream``;
                none without ``wait``.

        Raises:
            BrokerUnavailable: the broker did not confirm; the request may be sent again with the same id.
        """
        ...

    async def close(self) -> None:
        """Disconnect. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class BrokerAdapter:
    """An adapter's constructors and defaults; each broker's ``source`` module has one as ``ADAPTER`` for ``factory``.

    Args:
        source: creates a ``Source``, without connecting.
        submitter: creates a ``Submitter``, without connecting.
        names: the default names of the streams of requests, results and dead letters.
        reply_prefixes: the default prefixes that reply addresses must have.
    """

    source: Callable[[QueueOptions], Source]
    submitter: Callable[[QueueOptions], Submitter]
    names: tuple[str, str, str]
    reply_prefixes: tuple[str, ...]
