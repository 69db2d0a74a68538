"""What a broker's adapter offers to those who work and to those who submit work."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from runtime.events.envelope import Envelope
from runtime.events.outcome import Outcome


class BrokerUnavailable(Exception):
    """The broker does not answer, or not as it should. Nothing is lost by it; the message is for the log."""


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """A queue, its group of workers, and where its answers go.

    Args:
        url: of the broker; may hold a password.
        stream: name of the stream, queue or topic that work comes in on.
        group: workers of one name share the work.
        results: stream, queue or topic for answers.
        dead: the same for dead letters.
        operation: of messages that name none.
        ack_seconds: a delivery that nobody has extended for so long is given to another worker.
        most: deliveries of one message at most, where the broker counts them itself.
        results_seconds: how long the broker keeps an answer, and knows that it was sent.
        reply_prefixes: what a message's own reply address must begin with; others are refused.
        create: make what is missing of streams, queues and groups.
    """

    url: str
    stream: str
    group: str
    results: str
    dead: str
    operation: str | None = None
    ack_seconds: float = 30.0
    most: int = 5
    results_seconds: float = 86_400.0
    reply_prefixes: tuple[str, ...] = ()
    create: bool = True


class Delivery(Protocol):
    """One message, given to this worker for ``ack_seconds``."""

    @property
    def attempt(self) -> int:
        """How often it was delivered, this time included."""
        ...

    def envelope(self) -> Envelope:
        """What is in it.

        Raises:
            InvalidRequest: nothing that can be worked on.
        """
        ...

    async def extend(self) -> None:
        """Ask for another ``ack_seconds``.

        Raises:
            BrokerAway: see there.
        """
        ...

    async def send_chunk(self, envelope: Envelope, number: int, chunk: Mapping[str, Any]) -> None:
        """Tell the sender a piece of the answer; at most once, for what it is worth.

        Args:
            envelope: of this delivery.
            number: of the chunk within this attempt, from 0.
            chunk: what the operation's stream gave.

        Raises:
            BrokerAway: see there.
        """
        ...

    async def settle(self, envelope: Envelope | None, outcome: Outcome) -> None:
        """Send the answer where one is due and then let the message go; in this order, so that none is ever lost.

        Sending it twice must have no effect on who reads the answers: another worker may have done so before it died.

        Args:
            envelope: None of a message that held none.
            outcome: of the work.

        Raises:
            BrokerAway: see there; the message will be delivered again.
        """
        ...


class Source(Protocol):
    """A queue, from the side of those who work on it.

    Fetches come one after the other; ``lag`` and deliveries' own methods may be called meanwhile.
    """

    name: str
    """For logs; no password in it."""

    async def open(self) -> None:
        """Connect. Also after ``BrokerUnavailable``, where the adapter does not mend its connection by itself.

        Raises:
            BrokerAway: see there.
            SettingsError: the broker refuses what the options ask for; it would do so again.
        """
        ...

    async def fetch(self, most: int, seconds: float) -> Sequence[Delivery]:
        """Messages that wait, those that other workers left behind among them.

        Args:
            most: there is room for no more.
            seconds: to wait if there is none.

        Raises:
            BrokerAway: see there.
        """
        ...

    async def lag(self) -> int | None:
        """Messages that no worker of the group has taken yet, or None where the broker cannot tell.

        Raises:
            BrokerAway: see there.
        """
        ...

    async def close(self) -> None:
        """Disconnect, once everything is settled. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """A piece of an answer, or all of it.

    Args:
        kind: ``result`` and ``error`` are the last.
        body: what the operation answered, or OpenAI's error object.
        chunk: its number within the attempt, from 0.
        attempt: the delivery that it is of. A new one begins anew.
    """

    kind: Literal["chunk", "result", "error"]
    body: Mapping[str, Any]
    chunk: int = 0
    attempt: int = 1


class Submitter(Protocol):
    """A queue, from the side of those who submit work."""

    async def open(self) -> None:
        """Connect, and make the queue where it is missing and the options say so.

        Raises:
            BrokerAway: see ``Source``.
            SettingsError: see ``Source``.
        """
        ...

    async def submit(self, envelope: Envelope, *, wait: bool) -> AsyncGenerator[Reply, None]:
        """Send work.

        Args:
            envelope: its ``reply_to`` is of no effect; the adapter has one of its own where it needs one.
            wait: for the answer.

        Returns:
            Once the broker has the message: the answer, after its chunks if ``envelope.stream``. Nothing without
            ``wait``.

        Raises:
            BrokerAway: see there; with the same id it may be sent again.
        """
        ...

    async def close(self) -> None:
        """Disconnect. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class BrokerAdapter:
    """What a broker's ``source`` module offers to ``factory``, under the name ``ADAPTER``.

    Args:
        source: opens a ``Source``; connects to nothing yet.
        submitter: opens a ``Submitter``; connects to nothing yet.
        names: of the stream, its results and its dead letters, where the settings name none.
        reply_prefixes: what a message's own reply address must begin with, where the settings say nothing else.
    """

    source: Callable[[QueueOptions], Source]
    submitter: Callable[[QueueOptions], Submitter]
    names: tuple[str, str, str]
    reply_prefixes: tuple[str, ...]
