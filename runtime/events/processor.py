"""Processes one delivery, from its envelope to its outcome, once per message id."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from runtime.cancellation import cancel_and_wait
from runtime.errors import (
    DeadlinePassed,
    DeliveryLimit,
    IdempotencyConflict,
    IdempotencyMismatch,
    IdempotencyUnavailable,
    InternalError,
    ServiceError,
)
from runtime.events.envelope import Envelope
from runtime.events.idempotency.records import Done, InProgress, Mismatch, Records, RecordsUnavailable, fingerprint, key
from runtime.events.outcome import Ack, Outcome, Policy
from runtime.json_answer import encoded

_log = logging.getLogger("warmstart.events")

# Maximum ``retry_after`` in seconds while another worker has the lease: it may finish long before the lease expires.
_MAX_CONFLICT_SECONDS = 1.0
_LEASE_LOST = "another worker has taken over this event"

Chunk = Mapping[str, Any]
SendChunk = Callable[[int, Chunk], Awaitable[None]]
Extend = Callable[[], Awaitable[None]]


class Dispatch(Protocol):
    """Calls an operation by name. It is injected, so that this package does not depend on the operations."""

    def __call__(self, envelope: Envelope, send_chunk: SendChunk | None = None) -> Awaitable[Mapping[str, Any]]:
        """Call the operation that the envelope names, and return its answer.

        Args:
            envelope: the event to process.
            send_chunk: called with the number and the content of each chunk, if the operation streams its answer.

        Raises:
            ServiceError: the operation failed.
        """
        ...


class Processor:
    """Processes deliveries idempotently, and turns errors into retries and rejections.

    Args:
        dispatch: calls the operations.
        records: the idempotency records; None to process every delivery.
        policy: the retry policy.
        lease_seconds: how long an idempotency record stays leased to a worker that has died. A live worker renews its
            lease three times in that period.
        result_seconds: how long a result is cached.
        clock: returns the Unix time in seconds, to check deadlines.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        records: Records | None,
        policy: Policy,
        *,
        lease_seconds: float = 30.0,
        result_seconds: float = 86_400.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._dispatch = dispatch
        self._records = records
        self.policy = policy
        self._lease_seconds = lease_seconds
        self._result_seconds = result_seconds
        self._clock = clock

    async def __call__(
        self, envelope: Envelope, *, send_chunk: SendChunk | None = None, extend: Extend | None = None
    ) -> Outcome:
        """Process the event, or return the cached response. Raises nothing but ``asyncio.CancelledError``.

        Args:
            envelope: the delivery's envelope.
            send_chunk: see ``Dispatch``; used only if the envelope has ``stream`` set.
            extend: extends the delivery; called about three times per ``lease_seconds``. Its exceptions are only
                logged.
        """
        if not envelope.stream:
            send_chunk = None
        try:
            if self._records is None:
                return Ack(await self._run_operation(envelope, send_chunk, extend, _no_lease))
            return await self._process_once(self._records, envelope, send_chunk, extend)
        except ServiceError as error:
            return self.policy.outcome(error, envelope.attempt)
        except Exception:
            _log.exception("an event failed")
            return self.policy.outcome(InternalError("the operation failed"), envelope.attempt)

    async def _process_once(
        self, records: Records, envelope: Envelope, send_chunk: SendChunk | None, extend: Extend | None
    ) -> Ack:
        """Lease the idempotency record, process the event and store the result; or return the cached response."""
        record_key, holder = key(envelope), secrets.token_hex(16)
        holds_lease = (
            True  # also while ``begin`` has not answered: if it fails, the lease may exist and must be released
        )
        try:
            try:
                state = await records.begin(
                    record_key, fingerprint(envelope.operation, envelope.data), holder, self._lease_seconds
                )
            except RecordsUnavailable as error:
                _log.warning("cannot read an idempotency record: %s", error)
                raise IdempotencyUnavailable(
                    "whether this event was processed before cannot be looked up now"
                ) from None
            if isinstance(state, Done):
                holds_lease = False
                return Ack(json.loads(state.result), repeated=True)
            if isinstance(state, InProgress):
                holds_lease = False
                raise IdempotencyConflict(
                    "another worker is processing this event", retry_after=min(state.seconds, _MAX_CONFLICT_SECONDS)
                )
            if isinstance(state, Mismatch):
                holds_lease = False
                raise IdempotencyMismatch("id: it was used before with another payload", param="id")
            if state.lapsed >= self.policy.max_deliveries:
                holds_lease = False  # keeps the record, so that no other worker starts with a fresh count
                raise DeliveryLimit(f"{state.lapsed} workers began this event and did not finish it")
            result = await self._run_operation(
                envelope, send_chunk, extend, lambda: records.renew(record_key, holder, self._lease_seconds)
            )
            try:
                completed = await records.complete(record_key, holder, await encoded(result), self._result_seconds)
            except RecordsUnavailable as error:
                # Return the answer anyway: without a record it may be computed twice, but it is not lost.
                _log.warning("cannot store a result in its idempotency record: %s", error)
                completed = True
            holds_lease = False
            if not completed:
                raise IdempotencyConflict(_LEASE_LOST, retry_after=1)
            return Ack(result)
        finally:
            if holds_lease:
                await self._release(records, record_key, holder)

    async def _release(self, records: Records, record_key: str, holder: str) -> None:
        try:
            await asyncio.shield(records.release(record_key, holder))
        except RecordsUnavailable as error:  # the lease expires by itself
            _log.warning("cannot release an idempotency lease: %s", error)

    async def _run_operation(
        self,
        envelope: Envelope,
        send_chunk: SendChunk | None,
        extend: Extend | None,
        renew: Callable[[], Awaitable[bool]],
    ) -> Mapping[str, Any]:
        """Call the operation, and stop it at the sender's deadline or when another worker takes the lease over."""
        seconds_left = None if envelope.deadline is None else envelope.deadline - self._clock()
        if seconds_left is not None and seconds_left <= 0:
            raise DeadlinePassed("the event arrived after its deadline")
        lost = asyncio.Event()
        try:
            async with asyncio.timeout(seconds_left) as limit, self._heartbeat(limit, lost, extend, renew):
                return await self._dispatch(envelope, send_chunk)
        except TimeoutError:
            if not limit.expired():
                raise
            if lost.is_set():
                raise IdempotencyConflict(_LEASE_LOST, retry_after=1) from None
            raise DeadlinePassed("the event was not finished by its deadline") from None

    @asynccontextmanager
    async def _heartbeat(
        self, limit: asyncio.Timeout, lost: asyncio.Event, extend: Extend | None, renew: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[None]:
        """Extend the delivery and renew the lease while the block runs; expire ``limit`` if the lease is lost."""

        async def beat() -> None:
            while not lost.is_set():
                await asyncio.sleep(self._lease_seconds / 3)
                calls = [renew()] if extend is None else [renew(), extend()]
                for result in await asyncio.gather(*calls, return_exceptions=True):
                    if isinstance(result, BaseException):  # a later call may succeed; if not, settling fails
                        _log.warning("cannot extend a delivery: %s", result)
                    elif result is False:
                        lost.set()
                        if not limit.expired():
                            limit.reschedule(0)

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            await cancel_and_wait(task)


async def _no_lease() -> bool:
    return True
