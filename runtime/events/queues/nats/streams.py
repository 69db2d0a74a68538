"""The streams on a NATS server: what they must be like, and messages in them that are there once only."""

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
_MARKS_BYTES = 512  # the headers that ``send`` adds, at most
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_JETSTREAM = (10039, 10076)
_NAME_IN_USE, _STORE_FAILED = 10058, 10077


def check_names(options: QueueOptions) -> None:
    """Whether streams and consumers may be called so.

    Raises:
        SettingsError: one may not, or two are the same.
    """
    named = {"stream": options.stream, "results": options.results, "dead": options.dead, "group": options.group}
    for what, name in named.items():
        if not _NAME.fullmatch(name):
            raise SettingsError(f"{what}: NATS takes letters, digits, - and _, and not {name!r}")
    if len({options.stream, options.results, options.dead}) < 3:
        raise SettingsError("stream, results and dead: they must be three streams")


def requests_config(name: str) -> StreamConfig:
    """For work: a message is gone once it is done, and refused rather than another dropped where a limit is reached."""
    return StreamConfig(
        name=name,
        subjects=[f"{name}.>"],
        retention=RetentionPolicy.WORK_QUEUE,
        discard=DiscardPolicy.NEW,
        duplicate_window=_DUPLICATES_SECONDS,
    )


def answers_config(name: str, seconds: float) -> StreamConfig:
    """For what is sent once: a subject for each id, which takes one message and refuses others while that is kept.

    The server's memory of message ids alone would not do: it ends with the duplicate window.

    Args:
        name: of the stream.
        seconds: for which a message is kept; 0 for ever.
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


async def ensure_stream(link: NatsConnection, wanted: StreamConfig, create: bool) -> None:
    """See that there is such a stream.

    Raises:
        BrokerAway: see there.
        SettingsError: there is none, or one that will not do; or the server has no streams.
    """
    name = str(wanted.name)
    js = await link.jetstream()
    with broker_errors():
        try:
            found = (await js.stream_info(name)).config
        except NotFoundError:
            if not create:
                raise SettingsError(f"NATS has no stream {name}, and none is to be made here") from None
            try:
                found = (await js.add_stream(wanted)).config
            except APIError as error:
                if error.err_code != _NAME_IN_USE:  # else somebody made it this moment
                    raise SettingsError(f"NATS refuses to make the stream {name}: {error.description}") from None
                found = (await js.stream_info(name)).config
        except ServiceUnavailableError as error:
            if error.err_code is not None and error.err_code not in _NO_JETSTREAM:
                raise
            raise SettingsError(
                "EVENTS_URL: the NATS server has no JetStream; start it with: nats-server -js"
            ) from None
    if wanted.discard_new_per_subject and (wrong := _not_once(found, wanted)):
        raise SettingsError(f"the stream {name} of NATS is not fit for answers: {wrong}")


def _not_once(found: StreamConfig, wanted: StreamConfig) -> str | None:
    name = str(wanted.name)
    if not {f"{name}.>", f"{name}.*", ">"} & set(found.subjects or ()):
        return f"it does not take the subjects {name}.>"
    if not found.discard_new_per_subject or found.discard != DiscardPolicy.NEW or found.max_msgs_per_subject != 1:
        return "it must have --discard=new, --discard-per-subject and --max-msgs-per-subject=1"
    kept = found.max_age or float("inf")
    if kept < (wanted.max_age or float("inf")) and wanted.max_age:
        return f"it keeps them for {kept:g} s, not {wanted.max_age:g}: nats stream edit --max-age={wanted.max_age:g}s"
    return None


async def ensure_consumer(link: NatsConnection, options: QueueOptions) -> None:
    """See that the stream of work has the group's durable consumer.

    Raises:
        BrokerAway: see there.
        SettingsError: there is none, or one that will not do.
    """
    wanted = ConsumerConfig(
        durable_name=options.group,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=options.ack_seconds,
        max_deliver=-1,  # a message that the server gave up would be nobody's
        max_ack_pending=-1,  # those that wait for another try must not hold up the others
    )
    js = await link.jetstream()
    with broker_errors():
        try:
            found = (await js.consumer_info(options.stream, options.group)).config
        except NotFoundError:
            if not options.create:
                raise SettingsError(
                    f"the stream {options.stream} of NATS has no consumer {options.group}, and is to be given none here"
                ) from None
            try:
                found = (await js.add_consumer(options.stream, wanted)).config
            except APIError as error:
                raise SettingsError(
                    f"NATS refuses the group {options.group} on the stream {options.stream}: {error.description}"
                ) from None
    if wrong := _cannot_work(found, options.ack_seconds):
        raise SettingsError(f"the consumer {options.group} of the stream {options.stream} will not do: {wrong}")


def _cannot_work(found: ConsumerConfig, ack_seconds: float) -> str | None:
    if found.deliver_subject is not None or found.ack_policy != AckPolicy.EXPLICIT:
        return "it must be one to pull from, with --ack=explicit"
    if found.headers_only or found.backoff:
        return "it must have neither --headers-only nor --backoff"
    if (found.max_deliver or -1) > 0:
        return "it must have --max-deliver=-1: what the server gives up is lost"
    if (found.ack_wait or 0) < ack_seconds:
        return (
            f"it waits {found.ack_wait:g} s for a worker, not EVENTS_ACK_SECONDS ({ack_seconds:g}): "
            f"nats consumer edit --wait={ack_seconds:g}s"
        )
    return None


def token(id: str) -> str:
    """An id as one token of a subject: what means something in a subject is written as in URLs, and so is the ``%``."""
    return re.sub(r"[.*>%]", lambda found: f"%{ord(found[0]):02X}", id)


async def room(link: NatsConnection, headers: Mapping[str, str]) -> int:
    """Bytes that a message to a stream may hold beside these headers.

    Raises:
        BrokerAway: see there.
    """
    return await link.room(headers) - _MARKS_BYTES


async def send(
    link: NatsConnection, stream: str, subject: str, id: str, body: bytes, headers: Mapping[str, str]
) -> Any:
    """Put a message in a stream.

    Returns:
        The server's error, a mapping, or None.

    Raises:
        BrokerAway: whether it is there is unknown.
    """
    answer = await link.request(subject, body, {**headers, MSG_ID: id, _EXPECTED_STREAM: stream})
    try:
        return json.loads(answer.data).get("error")
    except (ValueError, AttributeError):
        raise BrokerUnavailable(f"no stream of NATS took a message to {subject}") from None


async def send_once(link: NatsConnection, stream: str, id: str, body: bytes, headers: Mapping[str, str]) -> None:
    """Put a message in a stream of answers, unless it has one of that id.

    Raises:
        BrokerAway: it may not be there.
    """
    error = await send(link, stream, f"{stream}.{token(id)}", id, body, headers)
    if error is None:
        return
    # One code for all limits: is it the one that we set?
    if error.get("err_code") == _STORE_FAILED and await stored(link, stream, id) is not None:
        return
    raise BrokerUnavailable(f"NATS refuses a message to the stream {stream}: {error.get('description')}")


async def stored(link: NatsConnection, stream: str, id: str) -> RawStreamMsg | None:
    """The message of that id in a stream of answers, if it has one.

    Raises:
        BrokerAway: see there.
    """
    js = await link.jetstream()
    with broker_errors():
        try:
            return await js.get_last_msg(stream, f"{stream}.{token(id)}")
        except NotFoundError:
            return None
