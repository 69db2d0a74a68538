"""Headers of the messages that adapters write, for brokers that neither delay messages nor count deliveries.

On these brokers a retry sends a copy of the message, with the number of deliveries so far, and acknowledges the
original.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from runtime.events.envelope import ATTEMPT, ID, KIND, REASON, encode, is_id
from runtime.events.outcome import Ack, Reject

_COUNT = re.compile(r"[0-9]{1,9}")


def earlier_deliveries(headers: Mapping[str, str]) -> int:
    """Return the deliveries of a message before it was sent again; 0 for a dead letter put back in the queue."""
    lowered = {name.lower(): value for name, value in headers.items()}
    count = lowered.get(ATTEMPT.lower(), "")
    return int(count) if REASON.lower() not in lowered and _COUNT.fullmatch(count) else 0


def answer_id(headers: Mapping[str, str], default: str) -> str:
    """Return the id under which the sender expects the answer, also for messages that cannot be parsed.

    Args:
        headers: the message's headers.
        default: the id if no header gives one.

    Returns:
        The id; empty if it is invalid.
    """
    given = {name.lower(): value for name, value in headers.items()}.get(ID.lower(), default)
    return given if is_id(given) else ""


def retry_headers(id: str, attempt: int) -> dict[str, str | None]:
    """Return the header changes for a message sent again; None removes a header."""
    return {ID: id or None, ATTEMPT: str(attempt), REASON: None}


def dead_letter_headers(id: str, attempt: int, reason: str) -> dict[str, str | None]:
    """Return the header changes for a dead letter; None removes a header."""
    return {ID: id or None, ATTEMPT: str(attempt), REASON: reason}


def answer_headers(id: str, kind: str, attempt: int) -> dict[str, str]:
    """Return the headers of an answer or of a chunk."""
    return {ID: id, KIND: kind, ATTEMPT: str(attempt)}


def encode_answer(outcome: Ack | Reject) -> tuple[str, bytes]:
    """Return the kind and the body of the answer."""
    if isinstance(outcome, Ack):
        return "result", encode(outcome.result)
    return "error", encode(outcome.error.openai())
