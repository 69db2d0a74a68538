"""RabbitMQ: one connection, the queues on it, and messages that are sent for sure or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AuthenticationError,
    ChannelClosed,
    ChannelNotFoundEntity,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from yarl import URL

from runtime.errors import SettingsError
from runtime.events.queues.base import BrokerUnavailable, QueueOptions

T = TypeVar("T")

SECONDS = 10.0
"""That the server has to answer in."""

WAITS = (1, 5, 15, 30, 60)
"""Seconds of the queues that messages wait in before they come again. In each all wait equally long, because a message
leaves a queue only once it is at the head."""

_QUORUM = {"x-queue-type": "quorum"}
_UNLIMITED = 1_000_000
"""Deliveries after which the server drops a message: ours to decide. From RabbitMQ 4.0 on the default is 20."""


@contextmanager
def broker_errors() -> Iterator[None]:
    """What the client library raises, as ``BrokerUnavailable``."""
    try:
        yield
    except TimeoutError:
        raise BrokerUnavailable(f"RabbitMQ does not answer within {SECONDS:g} s") from None
    except CONNECTION_EXCEPTIONS as error:
        raise BrokerUnavailable(f"RabbitMQ: {type(error).__name__}: {str(error)[:200]}") from None
    except asyncio.CancelledError:
        # A connection that ends cancels what waits on it; the caller's own cancellation is another thing.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise BrokerUnavailable("RabbitMQ: the connection ended") from None


class RabbitMQConnection:
    """See the module.

    Args:
        options: of the queue. The server notices within ``ack_seconds`` that this end is gone (heartbeats).

    Raises:
        SettingsError: the URL is wrong.
    """

    def __init__(self, options: QueueOptions) -> None:
        self.options = options
        try:
            url = URL(options.url)
            if not url.host:
                raise ValueError
        except ValueError:
            raise SettingsError("EVENTS_URL: amqp://user:password@host:5672/vhost") from None
        heartbeat = max(1, int(options.ack_seconds / 2))  # the server waits for two
        self._url = url.update_query({"heartbeat": str(heartbeat), "name": "warmstart", **url.query})
        self._connection: AbstractConnection | None = None
        self._sending: AbstractChannel | None = None
        self._telling: AbstractChannel | None = None
        self._connecting, self._one = asyncio.Lock(), asyncio.Lock()
        self._calls: set[asyncio.Task[Any]] = set()

    async def connect(self) -> AbstractConnection:
        """Anew, whatever there was before.

        Raises:
            BrokerAway: see there.
            SettingsError: the server does not know the user.
        """
        await self.close()
        return await self.call(self._connect())

    async def _connect(self) -> AbstractConnection:
        async with self._connecting, asyncio.timeout(SECONDS):
            try:
                self._connection = await aio_pika.connect(self._url)
            except (AuthenticationError, ProbableAuthenticationError):
                raise SettingsError("EVENTS_URL: RabbitMQ refuses the user or the password") from None
            except InvalidFrameError:  # "close" in place of "open"; why, the library keeps to itself
                why = "ends the connection: is the virtual host there, and for this user?"
                raise BrokerUnavailable(f"RabbitMQ {why}") from None
            self._sending = await self._connection.channel(on_return_raises=True)
            return self._connection

    async def call(self, asked: Coroutine[Any, Any, T]) -> T:
        """Call the client library.

        A caller that is cancelled leaves at once, and the call goes on to its end in a task of its own: over a request
        that is broken off, the library closes the channel and the server may close the connection.

        Args:
            asked: one call, or several that belong together; with time limits of their own.

        Raises:
            BrokerAway: RabbitMQ does not answer in time, or refuses.
        """
        task = asyncio.create_task(asked)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        with broker_errors():
            return await asyncio.shield(task)

    async def channel(self) -> AbstractChannel:
        """Open another channel; within ``call``.

        Raises:
            BrokerAway: there is no connection.
        """
        if self._connection is None:
            raise BrokerUnavailable("RabbitMQ: not connected")
        return await self._connection.channel(publisher_confirms=False)

    @property
    def sending(self) -> AbstractChannel:
        """The channel that ``send`` takes.

        Raises:
            BrokerAway: there is none.
        """
        if self._sending is None or self._sending.is_closed:
            raise BrokerUnavailable("RabbitMQ: not connected")
        return self._sending

    async def ensure(self, *, answers: bool) -> None:
        """Look whether the queues are there, and make those that are not if the options say so.

        Args:
            answers: those for answers, dead letters and waiting messages, too.

        Raises:
            BrokerAway: see there.
            SettingsError: one is missing, or may not be used.
        """
        options = self.options
        wanted: dict[str, dict[str, Any]] = {options.stream: {"x-delivery-limit": _UNLIMITED}}
        if answers:
            wanted[options.results] = {"x-message-ttl": int(options.results_seconds * 1000)}
            wanted[options.dead] = {"x-delivery-limit": _UNLIMITED}
            wanted |= {waiting(options.stream, seconds): _wait(options.stream, seconds) for seconds in WAITS}
        for name, arguments in wanted.items():
            if not await self.call(self._declare(name, None)) and not (
                options.create and await self.call(self._declare(name, _QUORUM | arguments))
            ):
                raise SettingsError(f"RabbitMQ has no queue {name!r}, and is not to make it")

    async def _declare(self, name: str, arguments: dict[str, Any] | None) -> bool:
        """Whether it is there; with arguments it is made. Each on a channel of its own: a refusal closes that."""
        channel = await self.channel()
        try:
            await channel.declare_queue(
                name, durable=True, passive=arguments is None, arguments=arguments, timeout=SECONDS
            )
        except ChannelNotFoundEntity:
            return False
        except ChannelClosed as error:
            raise SettingsError(f"RabbitMQ refuses the queue {name!r}: {str(error)[:200]}") from None
        await channel.close()
        return True

    async def send(self, queue: str, message: aio_pika.Message) -> None:
        """Once the server has it in the queue, and safely so. One after the other: a message that comes back is known
        by nothing but its id, which is the same for an answer and its dead letter.

        Raises:
            BrokerAway: it may not be there.
        """
        message.delivery_mode = aio_pika.DeliveryMode.PERSISTENT
        await self.call(self._send(queue, message))

    async def _send(self, queue: str, message: aio_pika.Message) -> None:
        async with self._one:
            await self.sending.default_exchange.publish(message, queue, mandatory=True, timeout=SECONDS)

    async def tell(self, queue: str, message: aio_pika.Message) -> None:
        """For what it is worth: nobody knows whether it gets there. What is told first gets there first.

        Raises:
            BrokerAway: see there.
        """
        await self.call(self._tell(queue, message))

    async def _tell(self, queue: str, message: aio_pika.Message) -> None:
        async with self._one:
            if self._telling is None or self._telling.is_closed:  # an address may be such that the server closes it
                self._telling = await self.channel()
            await self._telling.default_exchange.publish(message, queue, mandatory=False, timeout=SECONDS)

    async def close(self) -> None:
        """Disconnect. What is not acknowledged goes back to its queue."""
        async with self._connecting:  # for a caller that was cancelled, perhaps
            connection, self._connection, self._sending, self._telling = self._connection, None, None, None
        if connection is not None:
            with suppress(*CONNECTION_EXCEPTIONS):
                async with asyncio.timeout(SECONDS):
                    await connection.close()


def waiting(stream: str, seconds: int) -> str:
    """Name of the queue in which messages wait for so long."""
    return f"{stream}.wait.{seconds}s"


def _wait(stream: str, seconds: int) -> dict[str, Any]:
    """Arguments of such a queue. Out of it a message goes back to the work, and leaves it once it is safely there."""
    return {
        "x-message-ttl": seconds * 1000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": stream,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
