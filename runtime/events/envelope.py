"""The envelope that every source makes of a message, and the names of the headers of messages and answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ID = "Warmstart-Id"
OPERATION = "Warmstart-Operation"
DEADLINE = "Warmstart-Deadline"
REPLY_TO = "Warmstart-Reply-To"
STREAM = "Warmstart-Stream"
TRACEPARENT = "traceparent"
"""Headers of a message.

They hold its id (for brokers that have no field for it), the operation, the deadline as Unix time in seconds, the reply
address, ``true`` to stream tokens, and the W3C Trace Context.
"""

KIND = "Warmstart-Kind"
CHUNK = "Warmstart-Chunk"
ATTEMPT = "Warmstart-Attempt"
REASON = "Warmstart-Reason"
"""Headers of an answer.

They hold its kind (``result``, ``error`` or ``chunk``), the chunk's number from 0 within the attempt, the attempt's
number from 1, and the reason for a dead letter.
"""

TYPE_PREFIX = "warmstart."
"""Prefix of event types, and of the default names of topics, queues and reply subjects.

An event of type ``warmstart.generate`` requests ``generate``; its answer has the type ``warmstart.generate.result``.
"""

MAX_ID_CHARS = 256
_ID = re.compile(r"[\x21-\x7e]{1,256}")


@dataclass(frozen=True, slots=True)
class Envelope:
    """One event to process, in the same form for all sources.

    Args:
        id: the event's id, unique within its source and the same in every redelivery.
        source: the event's origin, in any stable form.
        type: the event's type, for example ``warmstart.generate``.
        operation: the name of the operation to call.
        data: the operation's payload, not validated yet.
        traceparent: the W3C Trace Context of the caller's trace; None for none.
        attempt: the number of deliveries so far, including this one.
        deadline: the Unix time in seconds after which the answer is of no use; None for no deadline.
        reply_to: the reply address in the broker's own format; None for the default results queue only.
        stream: whether the sender also wants the tokens as they are generated.
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


def to_headers(envelope: Envelope) -> dict[str, str]:
    """Return the message headers of an envelope, for submitters; ``runtime.events.message.read`` parses them."""
    values = {
        ID: envelope.id,
        OPERATION: envelope.operation,
        TRACEPARENT: envelope.traceparent,
        DEADLINE: None if envelope.deadline is None else f"{envelope.deadline:.3f}",
        REPLY_TO: envelope.reply_to,
        STREAM: "true" if envelope.stream else None,
    }
    return {name: value for name, value in values.items() if value is not None}


def encode(answer: Mapping[str, Any]) -> bytes:
    """Encode an answer as JSON, byte for byte as the HTTP service sends it."""
    return json.dumps(answer).encode()


def is_id(text: str) -> bool:
    """Return whether the text is a valid message id: 1 to 256 printable ASCII characters without blanks."""
    return _ID.fullmatch(text) is not None
