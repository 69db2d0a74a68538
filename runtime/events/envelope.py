"""What every source makes of its messages, and what becomes of an answer on its way back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from runtime.errors import InvalidRequest
from runtime.strict_json import loads

ID = "Warmstart-Id"
OPERATION = "Warmstart-Operation"
DEADLINE = "Warmstart-Deadline"
REPLY_TO = "Warmstart-Reply-To"
STREAM = "Warmstart-Stream"
TRACEPARENT = "traceparent"
"""Headers of a message: its id (where the broker has no field for that), the operation, the Unix time in seconds after
which nobody wants the answer, where that is to go, ``true`` for its tokens as they come, and W3C Trace Context."""

KIND = "Warmstart-Kind"
CHUNK = "Warmstart-Chunk"
ATTEMPT = "Warmstart-Attempt"
REASON = "Warmstart-Reason"
"""Headers of an answer: ``result``, ``error`` or ``chunk``; the chunk's number, from 0, within the attempt of that
number, from 1; and of a dead letter, why it is one."""

TYPE_PREFIX = "warmstart."
"""An event of type ``warmstart.generate`` asks for ``generate``, and ``warmstart.generate.result`` answers it."""

LONGEST_ID = 256
_CLOUD_EVENT = re.compile(r"application/cloudevents|specversion")
_ID = re.compile(r"[\x21-\x7e]{1,256}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")


@dataclass(frozen=True, slots=True)
class Envelope:
    """One piece of work.

    Args:
        id: tells it from all others of its source; the same work comes with the same id however often it comes.
        source: where it is from, in any form that is stable.
        type: of the event, ``warmstart.generate``.
        operation: to call.
        data: its payload, checked by nobody yet.
        traceparent: of the trace it belongs to (W3C Trace Context), None for none.
        attempt: how often it was delivered, this time included.
        deadline: Unix time in seconds after which nobody wants the answer; None for any time.
        reply_to: where its sender wants the answer, in the broker's own terms; None for wherever answers go.
        stream: whether the sender wants the tokens as they come, too.
    """

    id: str
    source: str
    type: str
    operation: str
    data: dict[str, Any]
    traceparent: str | None = None
    attempt: int = 1
    deadline: float | None = None
    reply_to: str | None = None
    stream: bool = False


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


def headers(envelope: Envelope) -> dict[str, str]:
    """What ``read`` finds again; for whoever submits."""
    found = {
        ID: envelope.id,
        OPERATION: envelope.operation,
        TRACEPARENT: envelope.traceparent,
        DEADLINE: None if envelope.deadline is None else f"{envelope.deadline:.3f}",
        REPLY_TO: envelope.reply_to,
        STREAM: "true" if envelope.stream else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def encode(answer: Mapping[str, Any]) -> bytes:
    """An answer as it goes out, byte for byte what the HTTP service sends."""
    return json.dumps(answer).encode()


def is_id(text: str) -> bool:
    """Whether a message may have this for its id."""
    return _ID.fullmatch(text) is not None


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
