"""Headers of the messages that adapters write, for brokers that neither delay messages nor count deliveries.

On these brokers a retry sends a copy of the message, with the number of deliveries so far, and acknowledges the
original.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from runtime.errors import InvalidRequest
from runtime.events.envelope import ATTEMPT, ID, KIND, REASON, Envelope, encode, is_id
from runtime.events.outcome import Ack, Reject
from runtime.events.queues.base import QueueOptions

_COUNT = re.compile(r"[0-9]{1,9}")


def earlier(headers: Mapping[str, str]) -> int:
    """Return the deliveries of a message before it was sent again; 0 for a dead letter put back in the queue."""
    found = {name.lower(): value for name, value in headers.items()}
    count = found.get(ATTEMPT.lower(), "")
    return int(count) if REASON.lower() not in found and _COUNT.fullmatch(count) else 0


def given_id(headers: Mapping[str, str], otherwise: str) -> str:
    """Return the id under which the sender expects the answer, also for messages that cannot be parsed.

    Args:
        headers: the message's headers.
        otherwise: the id if no header gives one.

    Returns:
        The id; empty if it is invalid.
    """
    given = {name.lower(): value for name, value in headers.items()}.get(ID.lower(), otherwise)
    return given if is_id(given) else ""


def again(id: str, attempt: int) -> dict[str, str | None]:
    """Return the header changes for a message sent again; None removes a header."""
    return {ID: id or None, ATTEMPT: str(attempt), REASON: None}


def dead(id: str, attempt: int, reason: str) -> dict[str, str | None]:
    """Return the header changes for a dead letter; None removes a header."""
    return {ID: id or None, ATTEMPT: str(attempt), REASON: reason}


def about(id: str, kind: str, attempt: int) -> dict[str, str]:
    """Return the headers of an answer or of a chunk."""
    return {ID: id, KIND: kind, ATTEMPT: str(attempt)}


def answer(outcome: Ack | Reject) -> tuple[str, bytes]:
    """Return the kind and the body of the answer."""
    if isinstance(outcome, Ack):
        return "result", encode(outcome.result)
    return "error", encode(outcome.error.openai())


def answer_to(envelope: Envelope, options: QueueOptions) -> Envelope:
    """Return the envelope if its reply address is allowed.

    Addresses that begin with the name of one of the worker's own queues are refused: an answer there would become a new
    request.

    Raises:
        InvalidRequest: the reply address is not allowed.
    """
    ours = (options.stream, options.results, options.dead)
    to = envelope.reply_to
    if to is None or (to.startswith(options.reply_prefixes) and not to.startswith(ours)):
        return envelope
    raise InvalidRequest("reply_to: no answers are sent there (EVENTS_REPLY_PREFIXES)", param="reply_to")
