"""Which work is being done and which is done: the same message, delivered again, is not worked on again.

A record is *in progress* while its holder keeps renewing it, and *done* once it has a result, for as long as that is
kept. Who comes back too late to a record that has passed to another finds out when it renews or completes it: of those
who did the same work, one completes it. Expiry goes by the store's own clock, so that workers' clocks need not agree;
should that clock be set, work is done twice at worst, and never shut out for longer than the lease it was begun with.

The states are those of AWS Lambda Powertools' idempotency utility (INPROGRESS with expiry, COMPLETE); the errors are
those of draft-ietf-httpapi-idempotency-key-header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from runtime.events.envelope import Envelope


class RecordsUnavailable(Exception):
    """The store cannot be reached, read or written now. The message is for the log."""


@dataclass(frozen=True, slots=True)
class Started:
    """It is the caller's to do.

    Args:
        lapsed: how many before it took it up and were not heard of again.
    """

    lapsed: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """It is done; ``result`` is what came of it."""

    result: bytes


@dataclass(frozen=True, slots=True)
class InProgress:
    """Somebody else is at it, and has ``seconds`` left to say so again."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The same id came with another payload."""


class Records(Protocol):
    """Records by key. Every method is one step, and all but ``close`` may raise ``RecordsUnavailable``; what was done
    is then unknown, and may be asked for again.

    Whatever has had its time is removed as others are begun: results, and after a day what was let lapse.
    """

    async def begin(
        self, key: str, fingerprint: str, holder: str, seconds: float
    ) -> Started | Done | InProgress | Mismatch:
        """Take work up if nobody else has it.

        A record that its holder has let lapse goes to the caller. The same holder asking again begins again. Whoever is
        cancelled while it waits holds nothing.

        Args:
            key: of the record, see ``key``.
            fingerprint: of the payload, see ``fingerprint``.
            holder: names this attempt and no other.
            seconds: for which it is the caller's, unless renewed.
        """
        ...

    async def renew(self, key: str, holder: str, seconds: float) -> bool:
        """Keep work for another while, from now; whether it still was the holder's to do.

        One that has lapsed is still the holder's as long as nobody has asked for it.
        """
        ...

    async def complete(self, key: str, holder: str, result: bytes, seconds: float) -> bool:
        """Keep the result for so long; whether it still was the holder's, else nothing is changed.

        For a holder that has completed it already nothing is changed either, and it is told so again.
        """
        ...

    async def release(self, key: str, holder: str) -> None:
        """Give work back undone, as if it had never been begun: who let it lapse before still counts.

        Of no effect on a record of another, or a done one.
        """
        ...

    async def close(self) -> None:
        """Let go of files and connections."""
        ...


def key(envelope: Envelope) -> str:
    """Names an envelope's work: source and id, as CloudEvents 1.0 has it."""
    return sha256(json.dumps([envelope.source, envelope.id]).encode()).hexdigest()


def fingerprint(operation: str, data: Mapping[str, Any]) -> str:
    """Of a payload; the order of its members does not count."""
    return sha256(json.dumps([operation, data], sort_keys=True).encode()).hexdigest()
