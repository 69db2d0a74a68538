"""Reads a queue's message, with or without a CloudEvents envelope, as an ``Envelope``."""

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
    """An envelope from a message: a JSON object that is the operation's payload, and the headers above.

    Or a CloudEvent, whose source and id together become the envelope's id: ``/orders#17``.

    Args:
        body: of the message.
        headers: in any case.
        id: unless a header says otherwise.
        source: of the message.
        operation: unless a header says otherwise.
        attempt: how often it was delivered.
        reply_to: unless a header says otherwise.
        reply_prefixes: one of which ``reply_to`` must begin with, so that no message makes a worker write anywhere it
            likes; None for those that nobody writes to.

    Raises:
        InvalidRequest: the body is no JSON object, a header is wrong, or nothing names the operation.
        UnsupportedMediaType: an event in another format than JSON, or about other data.
    """
    found = {name.lower(): value for name, value in headers.items()}
    answer_to = found.get(REPLY_TO.lower(), reply_to) or None
    if answer_to is not None and reply_prefixes is not None and not answer_to.startswith(reply_prefixes):
        raise InvalidRequest("reply_to: answers may not be sent there (EVENTS_REPLY_PREFIXES)", param="reply_to")
    stream = found.get(STREAM.lower(), "").lower() == "true"
    if _CLOUD_EVENT.search(" ".join((found.get("content-type", "").lower(), *found))):
        from runtime.events.cloudevents.parse import from_message  # for those who have such only

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
    """One text of an event's source and id, which no other pair gives."""
    id = f"{quote(event.source, safe='/:')}#{event.id}"
    return id if is_id(id) else sha256(id.encode()).hexdigest()


def _deadline(text: str | None) -> float | None:
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise InvalidRequest(f"{DEADLINE}: a Unix time in seconds", param="deadline")
    return float(text)
