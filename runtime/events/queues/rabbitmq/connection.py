"""A RabbitMQ connection: declares the queues, and sends messages with publisher confirms."""

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
"""The timeout of requests to the server."""

RETRY_DELAYS = (1, 5, 15, 30, 60)
"""The delays in seconds of the delay queues, in which messages wait for their retry.

All messages of a queue have the same delay, because a message expires only at the head of its queue.
"""

_QUORUM = {"x-queue-type": "quorum"}
_UNLIMITED = 1_000_000
"""The deliveries after which the server drops a message.

It is high because the worker decides; from RabbitMQ 4.0 on the default is 20.
"""


@contextmanager
def broker_errors() -> Iterator[None]:
    """Raise the client library's errors as ``BrokerUnavailable``."""
    try:
        yield
    except TimeoutError:
        raise BrokerUnavailable(f"RabbitMQ does not answer within {SECONDS:g} s") from None
    except CONNECTION_EXCEPTIONS as error:
        raise BrokerUnavailable(f"RabbitMQ: {type(error).__name__}: {str(error)[:200]}") from None
    except asyncio.CancelledError:
        # A connection that ends cancels the calls that wait on it; pass on only the caller's own cancellation.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise BrokerUnavailable("RabbitMQ: the connection ended") from None


class RabbitMQConnection:
    """A connection to RabbitMQ, with one channel for confirmed and one for unconfirmed messages.

    Args:
        options: the queue's options. ``ack_seconds`` sets the heartbeat, so that the server notices within it that this
            end is gone.

    Raises:
        SettingsError: the URL is invalid.
    """

    def __init__(self, options: QueueOptions) -> None:
        self.options = options
        try:
            url = URL(options.url)
            if not url.host:
                raise ValueError
        except ValueError:
            raise SettingsError("EVENTS_URL: it must look like amqp://user:password@host:5672/vhost") from None
        heartbeat = max(1, int(options.ack_seconds / 2))  # the server allows two missed heartbeats
        self._url = url.update_query({"heartbeat": str(heartbeat), "name": "warmstart", **url.query})
        self._connection: AbstractConnection | None = None
        self._send_channel: AbstractChannel | None = None
        self._reply_channel: AbstractChannel | None = None
        self._connecting, self._send_lock = asyncio.Lock(), asyncio.Lock()
        self._calls: set[asyncio.Task[Any]] = set()

    async def connect(self) -> AbstractConnection:
        """Close the connection, if there is one, and open a new one.

        Raises:
            BrokerUnavailable: there is no connection to the server.
            SettingsError: the server refuses the user or the password.
        """
        await self.close()
        return await self.call(self._connect())

    async def _connect(self) -> AbstractConnection:
        async with self._connecting, asyncio.timeout(SECONDS):
            try:
                self._connection = await aio_pika.connect(self._url)
            except (AuthenticationError, ProbableAuthenticationError):
                raise SettingsError("EVENTS_URL: RabbitMQ refuses the user or the password") from None
            except InvalidFrameError:  # a "close" frame instead of "open"; the library hides the reason
                raise BrokerUnavailable(
                    "RabbitMQ closed the connection; check that the virtual host exists and that this user may use it"
                ) from None
            self._send_channel = await self._connection.channel(on_return_raises=True)
            return self._connection

    async def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await a call of the client library in a task of its own.

        If the caller is cancelled, it returns at once, and the call runs to its end: if a request is broken off, the
        library closes the channel, and the server may close the connection.

        Args:
            coroutine: one library call, or several that belong together, with timeouts of their own.

        Raises:
            BrokerUnavailable: RabbitMQ does not answer in time, or refuses.
        """
        task = asyncio.create_task(coroutine)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        with broker_errors():
            return await asyncio.shield(task)

    async def channel(self) -> AbstractChannel:
        """Open another channel, without publisher confirms; use it within ``call``.

        Raises:
            BrokerUnavailable: there is no connection.
        """
        if self._connection is None:
            raise BrokerUnavailable("RabbitMQ: not connected")
        return await self._connection.channel(publisher_confirms=False)

    @property
    def send_channel(self) -> AbstractChannel:
        """The channel that ``send`` uses.

        Raises:
            BrokerUnavailable: there is no open channel.
        """
        if self._send_channel is None or self._send_channel.is_closed:
            raise BrokerUnavailable("RabbitMQ: not connected")
        return self._send_channel

    async def ensure(self, *, answers: bool) -> None:
        """Check that the queues exist, and create the missing ones if the options say so.

        Args:
            answers: whether to include the queues for answers, dead letters and delays.

        Raises:
            BrokerUnavailable: the server does not answer.
            SettingsError: a queue is missing and not to be created, or the server refuses access.
        """
        options = self.options
        wanted: dict[str, dict[str, Any]] = {options.stream: {"x-delivery-limit": _UNLIMITED}}
        if answers:
            wanted[options.results] = {"x-message-ttl": int(options.results_seconds * 1000)}
            wanted[options.dead] = {"x-delivery-limit": _UNLIMITED}
            wanted |= {
                delay_queue(options.stream, seconds): _delay_queue_arguments(options.stream, seconds)
                for seconds in RETRY_DELAYS
            }
        for name, arguments in wanted.items():
            if not await self.call(self._declare(name, None)) and not (
                options.create and await self.call(self._declare(name, _QUORUM | arguments))
            ):
                raise SettingsError(f"RabbitMQ has no queue {name!r}; create it, or leave out --no-create")

    async def _declare(self, name: str, arguments: dict[str, Any] | None) -> bool:
        """Check that a queue exists, or create it if arguments are given; return whether it exists.

        Each call has its own channel, because a refusal closes the channel.
        """
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
        """Send a persistent message, and return once the server confirms that it is in the queue.

        Only one message is sent at a time: the library matches a returned message by its id alone, which is the same
        for an answer and its dead letter.

        Raises:
            BrokerUnavailable: the message may not be in the queue.
        """
        message.delivery_mode = aio_pika.DeliveryMode.PERSISTENT
        await self.call(self._send(queue, message))

    async def _send(self, queue: str, message: aio_pika.Message) -> None:
        async with self._send_lock:
            await self.send_channel.default_exchange.publish(message, queue, mandatory=True, timeout=SECONDS)

    async def send_unconfirmed(self, queue: str, message: aio_pika.Message) -> None:
        """Send a message without confirmation. Messages arrive in the order of the calls.

        Raises:
            BrokerUnavailable: there is no connection.
        """
        await self.call(self._send_unconfirmed(queue, message))

    async def _send_unconfirmed(self, queue: str, message: aio_pika.Message) -> None:
        async with self._send_lock:
            if self._reply_channel is None or self._reply_channel.is_closed:  # a bad address closes the channel
                self._reply_channel = await self.channel()
            await self._reply_channel.default_exchange.publish(message, queue, mandatory=False, timeout=SECONDS)

    async def close(self) -> None:
        """Disconnect. Unacknowledged messages go back to their queue."""
        async with self._connecting:  # a cancelled caller's ``_connect`` may still be running
            connection, self._connection, self._send_channel, self._reply_channel = self._connection, None, None, None
        if connection is not None:
            with suppress(*CONNECTION_EXCEPTIONS):
                async with asyncio.timeout(SECONDS):
                    await connection.close()


def delay_queue(stream: str, seconds: int) -> str:
    """Return the name of the delay queue with this delay."""
    return f"{stream}.wait.{seconds}s"


def _delay_queue_arguments(stream: str, seconds: int) -> dict[str, Any]:
    """Return the arguments of a delay queue.

    When a message expires, the server dead-letters it to the request queue, and removes it only once it is safely
    there.
    """
    return {
        "x-message-ttl": seconds * 1000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": stream,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
