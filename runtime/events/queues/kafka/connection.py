"""Kafka connections: client options from the URL, topic creation, and a producer that waits for acknowledgements."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    InvalidSessionTimeoutError,
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)
from aiokafka.helpers import create_ssl_context

from runtime.cancellation import reraise_cancellation
from runtime.errors import PayloadTooLarge, SettingsError
from runtime.events.queues.base import BrokerUnavailable, QueueOptions

SECONDS = 10.0
"""The timeout of requests to the brokers."""

_PARTITIONS = 16
"""The number of partitions of a created topic, and so the maximum number of workers that can share it."""

_REPLICAS = 3
_MAX_MESSAGE_BYTES = (
    64 * 2**20
)  # the client's maximum message size in bytes; the brokers' own limit is message.max.bytes

_PERMANENT_ERRORS = (
    GroupAuthorizationFailedError,
    InvalidSessionTimeoutError,
    InvalidTopicError,
    TopicAuthorizationFailedError,
)


@contextmanager
def broker_errors() -> Iterator[None]:
    """Raise the client library's errors as ``BrokerUnavailable``, or as ``SettingsError`` if they would occur again.

    Raises:
        BrokerUnavailable: the brokers do not answer, or answer with an error.
        PayloadTooLarge: the message exceeds the brokers' maximum size.
        SettingsError: the brokers refuse the settings.
    """
    try:
        with reraise_cancellation():
            yield
    except MessageSizeTooLargeError:
        raise PayloadTooLarge("the message is larger than Kafka accepts (message.max.bytes)") from None
    except _PERMANENT_ERRORS as error:
        raise SettingsError(f"Kafka refuses the settings: {_text(error)}") from None
    except (KafkaError, OSError) as error:
        raise BrokerUnavailable(f"Kafka: {_text(error)}") from None


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def client_options(url: str) -> dict[str, Any]:
    """Return the options that all clients of the library take.

    Args:
        url: ``kafka://user:password@host:9092,host:9092?tls=true&mechanism=SCRAM-SHA-256``. The default mechanism with
            a user is PLAIN.

    Raises:
        SettingsError: the URL is invalid.
    """
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    tls, mechanism = parameters.pop("tls", "false"), parameters.pop("mechanism", "PLAIN")
    if not hosts or parameters or parts.path.strip("/") or tls not in ("true", "false"):
        raise SettingsError(
            "EVENTS_URL: it must look like kafka://user:password@host:9092,host:9092?tls=true&mechanism=SCRAM-SHA-256"
        )
    options: dict[str, Any] = {"bootstrap_servers": hosts.split(","), "client_id": "warmstart"}
    options["request_timeout_ms"] = int(SECONDS * 1000)
    if tls == "true":
        options["ssl_context"] = create_ssl_context()
    if login:
        user, _, password = login.partition(":")
        options |= {"sasl_mechanism": mechanism, "sasl_plain_username": unquote(user)}
        options["sasl_plain_password"] = unquote(password)
    options["security_protocol"] = ("SASL_" if login else "") + ("SSL" if tls == "true" else "PLAINTEXT")
    return options


async def ensure_topics(options: QueueOptions) -> None:
    """Check that the topics exist, and create the missing ones if the options say so.

    Raises:
        BrokerUnavailable: the brokers do not answer.
        SettingsError: a topic is missing and not to be created, or the brokers refuse to create it.
    """
    keep = int(options.results_seconds * 1000)
    wanted = {options.stream: {}, options.results: {"retention.ms": str(keep)}, options.dead: {"retention.ms": "-1"}}
    with broker_errors():
        admin = AIOKafkaAdminClient(**client_options(options.url))
        try:
            await admin.start()
            existing = await admin.list_topics()
            if missing := [name for name in wanted if name not in existing]:
                if not options.create:
                    raise SettingsError(f"Kafka has no topic {missing[0]!r}; create it, or leave out --no-create")
                await _create_topics(admin, {name: wanted[name] for name in missing})
        finally:
            await admin.close()


async def _create_topics(admin: AIOKafkaAdminClient, topics: Mapping[str, Mapping[str, str]]) -> None:
    cluster = await admin.describe_cluster()
    if cluster["controller_id"] < 0:  # the library would fail without a controller
        raise BrokerUnavailable("Kafka has no controller now, which is needed to create topics")
    replicas = min(_REPLICAS, len(cluster["brokers"]))
    response = await admin.create_topics(
        [NewTopic(name, _PARTITIONS, replicas, topic_configs=dict(configs)) for name, configs in topics.items()]
    )
    for name, code, *_ in response.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            raise SettingsError(f"Kafka does not create the topic {name!r}: {error.__name__}")


class Sender:
    """Sends messages, and waits until the brokers have them. The library reconnects by itself.

    The producer is not idempotent: that would spare readers only one of several causes of duplicates, and an error that
    the idempotent producer cannot resolve ends it.

    Args:
        url: the brokers' URL, see ``client_options``.
    """

    def __init__(self, url: str) -> None:
        self._options = client_options(url)
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect.

        Raises:
            BrokerUnavailable: the brokers do not answer.
        """
        self._producer = AIOKafkaProducer(**self._options, acks="all", max_request_size=_MAX_MESSAGE_BYTES)
        with broker_errors():
            await self._producer.start()

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Mapping[str, str | bytes]
    ) -> None:
        """Send a message, and return once all in-sync replicas have it.

        Raises:
            BrokerUnavailable: the message may not be stored.
            PayloadTooLarge: the message exceeds the brokers' maximum size.
        """
        if self._producer is None:
            raise BrokerUnavailable("Kafka: not connected")
        listed = [(name, text if isinstance(text, bytes) else text.encode()) for name, text in headers.items()]
        with broker_errors():
            await self._producer.send_and_wait(topic, value, key=key, headers=listed)

    async def stop(self) -> None:
        """Disconnect. Never raises."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(KafkaError, OSError):
                async with asyncio.timeout(SECONDS):
                    await producer.stop()


def decode_headers(headers: Any) -> dict[str, str]:
    """Return a message's headers as text; the last one counts if a name occurs several times."""
    return {name: value.decode("utf-8", "replace") for name, value in headers or () if value is not None}
