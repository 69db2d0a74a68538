"""The state transitions of one idempotency record, as pure functions for the stores that compute in this process.

If the clock is set back, a lease ends one lease duration after that at the latest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from runtime.events.idempotency.records import Done, InProgress, Mismatch, Started

LAPSED_SECONDS = 86_400.0
"""How long an expired lease is counted, in seconds: longer than a worker that the work crashed takes to restart."""

NO_HOLDER = ""
"""The holder of a released record that has expired leases to count."""


@dataclass(frozen=True, slots=True)
class WorkRecord:
    """An idempotency record.

    Args:
        fingerprint: the payload's hash.
        holder: the id of the attempt that has the lease, or that completed the work.
        lapsed: the number of holders whose lease expired.
        since: the time at which it was begun, renewed or completed, by the store's clock in seconds.
        until: the time at which the lease or the result expires.
        result: the cached response; None until it is done.
    """

    fingerprint: str
    holder: str
    lapsed: int
    since: float
    until: float
    result: bytes | None = None

    @property
    def forget(self) -> float:
        """The time at which the record is removed."""
        return self.until + (LAPSED_SECONDS if self.result is None else 0)

    def is_held_by(self, holder: str) -> bool:
        """Return whether this holder has the lease and the work is not done."""
        return self.holder == holder and self.result is None


def begin(
    old: WorkRecord | None, fingerprint: str, holder: str, seconds: float, now: float
) -> tuple[WorkRecord, Started | Done | InProgress | Mismatch]:
    """Apply ``Records.begin``; return the new record (``old`` itself if nothing changes) and the answer."""
    lapsed = 0
    if old is not None:
        if old.fingerprint != fingerprint:
            return old, Mismatch()
        if old.result is not None:
            return old, Done(old.result)
        lapsed = old.lapsed
        if old.holder not in (holder, NO_HOLDER):
            if now < old.since:  # the clock was set back
                old = replace(old, since=now, until=now + old.until - old.since)
            if now < old.until:
                return old, InProgress(old.until - now)
            lapsed += 1
    return WorkRecord(fingerprint, holder, lapsed, now, now + seconds), Started(lapsed)


def renew(old: WorkRecord | None, holder: str, seconds: float, now: float) -> tuple[WorkRecord | None, bool]:
    """Apply ``Records.renew``; return the new record and the answer."""
    if old is None or not old.is_held_by(holder):
        return old, False
    return replace(old, since=now, until=now + seconds), True


def complete(
    old: WorkRecord | None, holder: str, result: bytes, seconds: float, now: float
) -> tuple[WorkRecord | None, bool]:
    """Apply ``Records.complete``; return the new record and the answer."""
    if old is None or old.holder != holder:
        return old, False
    if old.result is not None:
        return old, True
    return replace(old, since=now, until=now + seconds, result=result), True


def release(old: WorkRecord | None, holder: str, now: float) -> tuple[WorkRecord | None, None]:
    """Apply ``Records.release``; return the new record, None to remove it."""
    if old is None or not old.is_held_by(holder):
        return old, None
    return (replace(old, holder=NO_HOLDER, since=now, until=now) if old.lapsed else None), None
