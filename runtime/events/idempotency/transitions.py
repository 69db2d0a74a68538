"""One record, and what each operation makes of it: pure functions, for the stores that compute in this process.

Should the clock go back, a lease ends as long after that as it was to last, and not later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from runtime.events.idempotency.records import Done, InProgress, Mismatch, Started

LAPSED_SECONDS = 86_400.0
"""How long it is known that work was taken up and let lapse: longer than it takes to start whoever died of it anew."""

NOBODY = ""
"""Holds work that was given back, and that others had let lapse before."""


@dataclass(frozen=True, slots=True)
class WorkRecord:
    """What is known of a key.

    Args:
        fingerprint: of the payload.
        holder: who does it, or did it.
        lapsed: holders that were not heard of again.
        since: when it was begun, renewed or completed, by the store's clock, in seconds.
        until: when the lease ends, or the result is no longer kept.
        result: once it is done.
    """

    fingerprint: str
    holder: str
    lapsed: int
    since: float
    until: float
    result: bytes | None = None

    @property
    def forget(self) -> float:
        """When nothing is known of it any more."""
        return self.until + (LAPSED_SECONDS if self.result is None else 0)

    def is_of(self, holder: str) -> bool:
        """Whether this holder is to do it."""
        return self.holder == holder and self.result is None


def begin(
    found: WorkRecord | None, fingerprint: str, holder: str, seconds: float, now: float
) -> tuple[WorkRecord, Started | Done | InProgress | Mismatch]:
    """See ``Records.begin``; the record as it is then (``found`` itself if nothing changes), and the answer."""
    lapsed = 0
    if found is not None:
        if found.fingerprint != fingerprint:
            return found, Mismatch()
        if found.result is not None:
            return found, Done(found.result)
        lapsed = found.lapsed
        if found.holder not in (holder, NOBODY):
            if now < found.since:  # the clock has gone back
                found = replace(found, since=now, until=now + found.until - found.since)
            if now < found.until:
                return found, InProgress(found.until - now)
            lapsed += 1
    return WorkRecord(fingerprint, holder, lapsed, now, now + seconds), Started(lapsed)


def renew(found: WorkRecord | None, holder: str, seconds: float, now: float) -> tuple[WorkRecord | None, bool]:
    """See ``Records.renew``; the record as it is then, and the answer."""
    if found is None or not found.is_of(holder):
        return found, False
    return replace(found, since=now, until=now + seconds), True


def complete(
    found: WorkRecord | None, holder: str, result: bytes, seconds: float, now: float
) -> tuple[WorkRecord | None, bool]:
    """See ``Records.complete``; the record as it is then, and the answer."""
    if found is None or found.holder != holder:
        return found, False
    if found.result is not None:
        return found, True
    return replace(found, since=now, until=now + seconds, result=result), True


def release(found: WorkRecord | None, holder: str, now: float) -> tuple[WorkRecord | None, None]:
    """See ``Records.release``; the record as it is then."""
    if found is None or not found.is_of(holder):
        return found, None
    return (replace(found, holder=NOBODY, since=now, until=now) if found.lapsed else None), None
