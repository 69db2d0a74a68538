"""Parses a broker's message, with or without a CloudEvents envelope, into an ``Envelope``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from urllib.parse import quote

from runtime.errors import InvalidRequest
from runtime.events.envelope import (
    DEADLINE,
    ID,
    MAX_ID_CHARS,
    OPERATION,
    REPLY_TO,
    STREAM,
    TRACEPARENT,
    TYPE_PREFIX,
    Envelope,
    is_id,
)
from runtime.strict_json import loads

_CLOUD_EVENT = re.compile(r"application/cloudevents|specversion")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")


def read(
    body: bytes,
    headers: Mapping[str, str],
    *,
    id: str,
    source: str,
    operation: str | None,
    attempt: int = 1,
    reply_to: str | None = None,
    reply_prefixes: tuple[str, ...] | None = None,
    own_prefixes: tuple[str, ...] = (),
) -> Envelope:
    """Parse a message into an envelope. The body is the operation's payload as a JSON object, or a CloudEvent.

    A CloudEvent's source and id together become the envelope's id: ``/orders#17``.

    Args:
        body: the message's body.
        headers: the message's headers, with names in any case; see ``runtime.events.envelope``.
        id: the id, unless a header gives one.
        source: the envelope's source.
        operation: the operation, unless a header or the CloudEvent names one.
        attempt: the number of deliveries so far, including this one.
        reply_to: the reply address, unless a header gives one.
        reply_prefixes: the allowed prefixes of ``reply_to``, so that a message cannot make a worker write to any
            address it likes. None skips the check, for sources that send no replies.
        own_prefixes: the prefixes of the worker's own queues. They are refused in any case, because an answer there
            would become a new request.

    Raises:
        InvalidRequest: the body is no JSON object, a header is invalid, or no operation is named.
        UnsupportedMediaType: the event is in another format than JSON, or its data is not JSON.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    reply_to = lowered.get(REPLY_TO.lower(), reply_to) or None
    _check_reply_to(reply_to, reply_prefixes, own_prefixes)
    stream = lowered.get(STREAM.lower(), "").lower() == "true"
    if _CLOUD_EVENT.search(" ".join((lowered.get("content-type", "").lower(), *lowered))):
        from runtime.events.cloudevents.parse import from_message  # imported only when a CloudEvent arrives

        event = from_message(body, headers, operation=operation, attempt=attempt, reply_to=reply_to, stream=stream)
        if event is not None:
            return replace(event, id=_event_id(event), source=source)
    message_id = lowered.get(ID.lower(), id)
    if not is_id(message_id):
        raise InvalidRequest(
            f"id: use 1 to {MAX_ID_CHARS} printable ASCII characters without blanks, in {ID} or the broker's own field",
            param="id",
        )
    operation = lowered.get(OPERATION.lower(), operation)
    if not operation:
        raise InvalidRequest(f"operation: it is missing; name it in the header {OPERATION}", param="operation")
    if not _NAME.fullmatch(operation):
        raise InvalidRequest("operation: it must have 1 to 64 letters, digits, _, . and -", param="operation")
    data = loads(body)
    if not isinstance(data, dict):
        raise InvalidRequest("the message must be a JSON object")
    return Envelope(
        id=message_id,
        source=source,
        type=TYPE_PREFIX + operation,
        operation=operation,
        data=data,
        traceparent=lowered.get(TRACEPARENT),
        attempt=attempt,
        deadline=_deadline(lowered.get(DEADLINE.lower())),
        reply_to=reply_to,
        stream=stream,
    )


def _check_reply_to(
    reply_to: str | None, allowed_prefixes: tuple[str, ...] | None, own_prefixes: tuple[str, ...]
) -> None:
    if reply_to is None or allowed_prefixes is None:
        return
    if not reply_to.startswith(allowed_prefixes) or reply_to.startswith(own_prefixes):
        raise InvalidRequest(
            "reply_to: answers are not sent to this address; it must begin with one of EVENTS_REPLY_PREFIXES, and must "
            "not be one of the worker's own queues",
            param="reply_to",
        )


def _event_id(event: Envelope) -> str:
    """Join an event's source and id to one id that no other pair has."""
    id = f"{quote(event.source, safe='/:')}#{event.id}"
    return id if is_id(id) else sha256(id.encode()).hexdigest()


def _deadline(text: str | None) -> float | None:
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise InvalidRequest(f"{DEADLINE}: it must be a Unix time in seconds", param="deadline")
    return float(text)
