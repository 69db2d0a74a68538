"""The idempotency store's protocol: a redelivered message is not processed again.

A record is *in progress* while its holder keeps renewing the lease, and *done* once it has a result, until that
expires. A holder whose lease has passed to another finds out when it renews or completes the record: of several workers
that did the same work, only one completes it. Expiry goes by the store's own clock, so that the workers' clocks need
not agree. If that clock is set, work is done twice at worst, and is never blocked for longer than its lease.

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
    """The store cannot be reached, read or written now. The exception's text is for the log."""


@dataclass(frozen=True, slots=True)
class Started:
    """The caller has the lease and is to do the work.

    Args:
        lapsed: the number of earlier holders whose lease expired.
    """

    lapsed: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """The work is done; ``result`` is the cached response."""

    result: bytes


@dataclass(frozen=True, slots=True)
class InProgress:
    """Another worker has the lease, which expires in ``seconds`` unless renewed."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The same id came with another payload before."""


class Records(Protocol):
    """An idempotency store. Each method is atomic, and all but ``close`` may raise ``RecordsUnavailable``.

    Whether the store has executed a call that raised ``RecordsUnavailable`` is unknown; the call may be repeated.

    Expired records are removed as others are begun: results when they expire, and records whose lease expired after one
    day.
    """

    async def begin(
        self, key: str, fingerprint: str, holder: str, seconds: float
    ) -> Started | Done | InProgress | Mismatch:
        """Lease a record if no other worker has the lease.

        A record whose lease has expired goes to the caller. The same holder may begin again. If the caller is cancelled
        during the call, it holds no lease.

        Args:
            key: the record's key, see the function ``key``.
            fingerprint: the payload's hash, see the function ``fingerprint``.
            holder: an id that is unique to this attempt.
            seconds: the lease's duration, unless renewed.
        """
        ...

    async def renew(self, key: str, holder: str, seconds: float) -> bool:
        """Extend the lease to so many seconds from now, and return whether it still was the holder's.

        An expired lease is still the holder's as long as no other worker has begun the record.
        """
        ...

    async def complete(self, key: str, holder: str, result: bytes, seconds: float) -> bool:
        """Store the result for so many seconds, and return whether the record still was the holder's.

        If it was not, nothing changes. If the same holder has completed the record before, nothing changes either, and
        the answer is True again.
        """
        ...

    async def release(self, key: str, holder: str) -> None:
        """Release the lease without a result; the number of expired leases is kept.

        Has no effect on a record that is done or that another worker holds.
        """
        ...

    async def close(self) -> None:
        """Close the store."""
        ...


def key(envelope: Envelope) -> str:
    """Return the key of an envelope's record: a hash of source and id, which identify an event in CloudEvents 1.0."""
    return sha256(json.dumps([envelope.source, envelope.id]).encode()).hexdigest()


def fingerprint(operation: str, data: Mapping[str, Any]) -> str:
    """Return the hash of an operation and its payload; the order of the payload's members does not matter."""
    return sha256(json.dumps([operation, data], sort_keys=True).encode()).hexdigest()
