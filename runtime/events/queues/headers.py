"""Headers of the messages that adapters write, for brokers that neither delay a message nor count its deliveries.

There a message that is to come again is sent once more, with the number of its deliveries so far, and let go.
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
    """Deliveries of a message before it was sent again; a dead letter that was put back begins anew."""
    found = {name.lower(): value for name, value in headers.items()}
    count = found.get(ATTEMPT.lower(), "")
    return int(count) if REASON.lower() not in found and _COUNT.fullmatch(count) else 0


def given_id(headers: Mapping[str, str], otherwise: str) -> str:
    """What the sender of a message, even of one that cannot be read, may look for its answer under."""
    given = {name.lower(): value for name, value in headers.items()}.get(ID.lower(), otherwise)
    return given if is_id(given) else ""


def again(id: str, attempt: int) -> dict[str, str | None]:
    """What is other about a message sent once more. None: no such header."""
    return {ID: id or None, ATTEMPT: str(attempt), REASON: None}


def dead(id: str, attempt: int, reason: str) -> dict[str, str | None]:
    """What is other about a dead letter."""
    return {ID: id or None, ATTEMPT: str(attempt), REASON: reason}


def about(id: str, kind: str, attempt: int) -> dict[str, str]:
    """Headers of an answer, or a piece of one."""
    return {ID: id, KIND: kind, ATTEMPT: str(attempt)}


def answer(outcome: Ack | Reject) -> tuple[str, bytes]:
    """The kind and the body of the answer."""
    if isinstance(outcome, Ack):
        return "result", encode(outcome.result)
    return "error", encode(outcome.error.openai())


def answer_to(envelope: Envelope, options: QueueOptions) -> Envelope:
    """The envelope, if its answer may go where it says. Never among our own queues, from where it would be work again.

    Raises:
        InvalidRequest: it may not.
    """
    ours = (options.stream, options.results, options.dead)
    to = envelope.reply_to
    if to is None or (to.startswith(options.reply_prefixes) and not to.startswith(ours)):
        return envelope
    raise InvalidRequest("reply_to: no answers are sent there (EVENTS_REPLY_PREFIXES)", param="reply_to")
