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
    LONGEST_ID,
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
            address it likes. None skips the check, for sources that send no replies or check the address themselves.

    Raises:
        InvalidRequest: the body is no JSON object, a header is invalid, or no operation is named.
        UnsupportedMediaType: the event is in another format than JSON, or its data is not JSON.
    """
    found = {name.lower(): value for name, value in headers.items()}
    answer_to = found.get(REPLY_TO.lower(), reply_to) or None
    if answer_to is not None and reply_prefixes is not None and not answer_to.startswith(reply_prefixes):
        raise InvalidRequest("reply_to: answers may not be sent there (EVENTS_REPLY_PREFIXES)", param="reply_to")
    stream = found.get(STREAM.lower(), "").lower() == "true"
    if _CLOUD_EVENT.search(" ".join((found.get("content-type", "").lower(), *found))):
        from runtime.events.cloudevents.parse import from_message  # imported only when a CloudEvent arrives

        event = from_message(body, headers, operation=operation, attempt=attempt, reply_to=answer_to, stream=stream)
        if event is not None:
            return replace(event, id=_event_id(event), source=source)
    given = found.get(ID.lower(), id)
    if not is_id(given):
        raise InvalidRequest(
            f"id: 1 to {LONGEST_ID} printable ASCII characters without blanks, in {ID} or the broker's own field",
            param="id",
        )
    named = found.get(OPERATION.lower(), operation)
    if not named:
        raise InvalidRequest(f"operation: name one in the header {OPERATION}", param="operation")
    if not _NAME.fullmatch(named):
        raise InvalidRequest("operation: 1 to 64 letters, digits, _, . and -", param="operation")
    data = loads(body)
    if not isinstance(data, dict):
        raise InvalidRequest("the message must be a JSON object")
    return Envelope(
        id=given,
        source=source,
        type=TYPE_PREFIX + named,
        operation=named,
        data=data,
        traceparent=found.get(TRACEPARENT),
        attempt=attempt,
        deadline=_deadline(found.get(DEADLINE.lower())),
        reply_to=answer_to,
        stream=stream,
    )


def _event_id(event: Envelope) -> str:
    """Join an event's source and id to one id that no other pair has."""
    id = f"{quote(event.source, safe='/:')}#{event.id}"
    return id if is_id(id) else sha256(id.encode()).hexdigest()


def _deadline(text: str | None) -> float | None:
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise InvalidRequest(f"{DEADLINE}: a Unix time in seconds", param="deadline")
    return float(text)
