"""What every source makes of its messages, and what becomes of an answer on its way back."""

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
_ID = re.compile(r"[\x21-\x7e]{1,256}")


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
