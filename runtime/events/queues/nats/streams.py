"""Streams on a NATS server: creates and checks them, and stores each answer once per id."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RawStreamMsg, RetentionPolicy, StreamConfig
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from runtime.errors import SettingsError
from runtime.events.queues.base import BrokerUnavailable, QueueOptions
from runtime.events.queues.nats.connection import NatsConnection, broker_errors

MSG_ID = "Nats-Msg-Id"
_EXPECTED_STREAM = "Nats-Expected-Stream"
_DUPLICATES_SECONDS = 120.0
_ADDED_HEADER_BYTES = 512  # maximum size of the headers that ``send`` adds
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_JETSTREAM = (10039, 10076)
_NAME_IN_USE, _STORE_FAILED = 10058, 10077


def check_names(options: QueueOptions) -> None:
    """Check the names of streams and consumers.

    Raises:
        SettingsError: a name is invalid, or two streams have the same name.
    """
    named = {"stream": options.stream, "results": options.results, "dead": options.dead, "group": options.group}
    for what, name in named.items():
        if not _NAME.fullmatch(name):
            raise SettingsError(f"{what}: {name!r} is not a valid NATS name; use 1 to 64 letters, digits, - and _")
    if len({options.stream, options.results, options.dead}) < 3:
        raise SettingsError("stream, results and dead: they must be three different streams")


def requests_config(name: str) -> StreamConfig:
    """Return the configuration of the request stream.

    It is a work queue: a message is removed once acknowledged. At a limit, new messages are refused and no old ones
    dropped.
    """
    return StreamConfig(
        name=name,
        subjects=[f"{name}.>"],
        retention=RetentionPolicy.WORK_QUEUE,
        discard=DiscardPolicy.NEW,
        duplicate_window=_DUPLICATES_SECONDS,
    )


def answers_config(name: str, seconds: float) -> StreamConfig:
    """Return the configuration of a stream that stores one message per id.

    Each id has its own subject, which takes one message and refuses others while that one is kept. The server's
    deduplication of message ids is not enough: it ends with the duplicate window.

    Args:
        name: the stream's name.
        seconds: how long a message is kept; 0 for ever.
    """
    return StreamConfig(
        name=name,
        subjects=[f"{name}.>"],
        discard=DiscardPolicy.NEW,
        discard_new_per_subject=True,
        max_msgs_per_subject=1,
        max_age=seconds,
        duplicate_window=min(_DUPLICATES_SECONDS, seconds or _DUPLICATES_SECONDS),
    )


async def ensure_stream(connection: NatsConnection, wanted: StreamConfig, create: bool) -> None:
    """Create the stream if it is missing, and check an existing one.

    Raises:
        BrokerUnavailable: the server does not answer.
        SettingsError: the stream is missing or unsuitable, or the server has no JetStream.
    """
    name = str(wanted.name)
    js = await connection.jetstream()
    with broker_errors():
        try:
            config = (await js.stream_info(name)).config
        except NotFoundError:
            if not create:
                raise SettingsError(f"NATS has no stream {name}; create it, or leave out --no-create") from None
            try:
                config = (await js.add_stream(wanted)).config
            except APIError as error:
                if error.err_code != _NAME_IN_USE:  # else another worker has just created it
                    raise SettingsError(f"NATS does not create the stream {name}: {error.description}") from None
                config = (await js.stream_info(name)).config
        except ServiceUnavailableError as error:
            if error.err_code is not None and error.err_code not in _NO_JETSTREAM:
                raise
            raise SettingsError(
                "EVENTS_URL: the NATS server has no JetStream; start it with: nats-server -js"
            ) from None
    if wanted.discard_new_per_subject and (wrong := _answers_problem(config, wanted)):
        raise SettingsError(f"the NATS stream {name} cannot store answers: {wrong}")


def _answers_problem(config: StreamConfig, wanted: StreamConfig) -> str | None:
    name = str(wanted.name)
    if not {f"{name}.>", f"{name}.*", ">"} & set(config.subjects or ()):
        return f"it must have the subjects {name}.>"
    if not config.discard_new_per_subject or config.discard != DiscardPolicy.NEW or config.max_msgs_per_subject != 1:
        return "it must have --discard=new, --discard-per-subject and --max-msgs-per-subject=1"
    kept = config.max_age or float("inf")
    if kept < (wanted.max_age or float("inf")) and wanted.max_age:
        seconds = f"{wanted.max_age:g}"
        return f"it keeps messages for {kept:g} s instead of {seconds} s; run nats stream edit --max-age={seconds}s"
    return None


async def ensure_consumer(connection: NatsConnection, options: QueueOptions) -> None:
    """Create the group's durable consumer on the request stream if it is missing, and check an existing one.

    Raises:
        BrokerUnavailable: the server does not answer.
        SettingsError: the consumer is missing or unsuitable.
    """
    wanted = ConsumerConfig(
        durable_name=options.group,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=options.ack_seconds,
        max_deliver=-1,  # a message that the server gives up would be lost
        max_ack_pending=-1,  # messages that wait for a retry must not block the others
    )
    js = await connection.jetstream()
    with broker_errors():
        try:
            config = (await js.consumer_info(options.stream, options.group)).config
        except NotFoundError:
            if not options.create:
                raise SettingsError(
                    f"the NATS stream {options.stream} has no consumer {options.group}; create it, or leave "
                    "out --no-create"
                ) from None
            try:
                config = (await js.add_consumer(options.stream, wanted)).config
            except APIError as error:
                raise SettingsError(
                    f"NATS does not create the consumer {options.group} of the stream {options.stream}: "
                    f"{error.description}"
                ) from None
    if wrong := _consumer_problem(config, options.ack_seconds):
        raise SettingsError(f"the consumer {options.group} of the stream {options.stream} is not suitable: {wrong}")


def _consumer_problem(config: ConsumerConfig, ack_seconds: float) -> str | None:
    if config.deliver_subject is not None or config.ack_policy != AckPolicy.EXPLICIT:
        return "it must be a pull consumer with --ack=explicit"
    if config.headers_only or config.backoff:
        return "it must have neither --headers-only nor --backoff"
    if (config.max_deliver or -1) > 0:
        return "it must have --max-deliver=-1, because a message that the server gives up is lost"
    if (config.ack_wait or 0) < ack_seconds:
        return (
            f"its ack wait is {config.ack_wait:g} s instead of EVENTS_ACK_SECONDS ({ack_seconds:g} s); run "
            f"nats consumer edit --wait={ack_seconds:g}s"
        )
    return None


def token(id: str) -> str:
    """Encode an id as one token of a subject: characters with a meaning in subjects, and ``%``, become ``%XX``."""
    return re.sub(r"[.*>%]", lambda match: f"%{ord(match[0]):02X}", id)


async def max_body_bytes(connection: NatsConnection, headers: Mapping[str, str]) -> int:
    """Return the bytes that are left for the body of a message with these headers in a stream.

    Raises:
        BrokerUnavailable: there is no connection.
    """
    return await connection.max_body_bytes(headers) - _ADDED_HEADER_BYTES


async def send(
    connection: NatsConnection, stream: str, subject: str, id: str, body: bytes, headers: Mapping[str, str]
) -> Any:
    """Store a message in a stream.

    Returns:
        The server's error, a mapping; None if the message is stored.

    Raises:
        BrokerUnavailable: whether the message is stored is unknown.
    """
    answer = await connection.request(subject, body, {**headers, MSG_ID: id, _EXPECTED_STREAM: stream})
    try:
        return json.loads(answer.data).get("error")
    except (ValueError, AttributeError):
        raise BrokerUnavailable(f"no NATS stream stored the message to {subject}") from None


async def send_once(connection: NatsConnection, stream: str, id: str, body: bytes, headers: Mapping[str, str]) -> None:
    """Store a message in a stream of answers, unless the stream has one with that id.

    Raises:
        BrokerUnavailable: the message may not be stored.
    """
    error = await send(connection, stream, f"{stream}.{token(id)}", id, body, headers)
    if error is None:
        return
    # The server has one code for all limits; check that the one message per id is the reason.
    if error.get("err_code") == _STORE_FAILED and await stored_message(connection, stream, id) is not None:
        return
    raise BrokerUnavailable(f"NATS does not store a message in the stream {stream}: {error.get('description')}")


async def stored_message(connection: NatsConnection, stream: str, id: str) -> RawStreamMsg | None:
    """Return the message with that id from a stream of answers; None if there is none.

    Raises:
        BrokerUnavailable: the server does not answer.
    """
    js = await connection.jetstream()
    with broker_errors():
        try:
            return await js.get_last_msg(stream, f"{stream}.{token(id)}")
        except NotFoundError:
            return None
