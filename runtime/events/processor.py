"""One delivery, from its envelope to its outcome. Never raises but for cancellation."""

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

_TAKEN_SECONDS = 1.0  # at least, before work that another does is looked at again; it may end long before its lease
_TAKEN_OVER = "another worker has taken it up meanwhile"

Chunk = Mapping[str, Any]
SendChunk = Callable[[int, Chunk], Awaitable[None]]
Extend = Callable[[], Awaitable[None]]


class Dispatch(Protocol):
    """What calls the operations; injected, because nothing here knows them."""

    def __call__(self, envelope: Envelope, send_chunk: SendChunk | None = None) -> Awaitable[Mapping[str, Any]]:
        """Call an operation.

        Args:
            envelope: names it.
            send_chunk: told the number and the content of each piece of the answer, where the operation has such.

        Raises:
            ServiceError: as the operation does.
        """
        ...


class Processor:
    """See the module.

    Args:
        dispatch: calls the operations.
        records: of what is done; None does everything as often as it is delivered.
        policy: when to try again.
        lease_seconds: for which work stays taken, when whoever took it up is gone; it is renewed three times in that.
        keep_seconds: how long a result is kept.
        clock: Unix time in seconds, for deadlines.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        records: Records | None,
        policy: Policy,
        *,
        lease_seconds: float = 30.0,
        keep_seconds: float = 86_400.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._dispatch = dispatch
        self._records = records
        self.policy = policy
        self._lease_seconds = lease_seconds
        self._keep_seconds = keep_seconds
        self._clock = clock

    async def __call__(
        self, envelope: Envelope, *, send_chunk: SendChunk | None = None, extend: Extend | None = None
    ) -> Outcome:
        """Do the work, unless it is done.

        Args:
            envelope: of the delivery.
            send_chunk: see ``Dispatch``; asked for only where the envelope says so.
            extend: called about three times in ``lease_seconds`` while it lasts. What it raises is logged.
        """
        if not envelope.stream:
            send_chunk = None
        try:
            if self._records is None:
                return Ack(await self._work(envelope, send_chunk, extend, _nothing_to_renew))
            return await self._once(self._records, envelope, send_chunk, extend)
        except ServiceError as error:
            return self.policy.outcome(error, envelope.attempt)
        except Exception:
            _log.exception("an event failed")
            return self.policy.outcome(InternalError("the operation failed"), envelope.attempt)

    async def _once(
        self, records: Records, envelope: Envelope, send_chunk: SendChunk | None, extend: Extend | None
    ) -> Ack:
        """Take the work up, do it and record it; or answer what is recorded."""
        name, holder = key(envelope), secrets.token_hex(16)
        held = True  # or it may be, as long as nobody has said otherwise: then it is to be given back
        try:
            try:
                found = await records.begin(
                    name, fingerprint(envelope.operation, envelope.data), holder, self._lease_seconds
                )
            except RecordsUnavailable as error:
                _log.warning("cannot look up what is done: %s", error)
                raise IdempotencyUnavailable("whether this was done already cannot be looked up") from None
            if isinstance(found, Done):
                held = False
                return Ack(json.loads(found.result), repeated=True)
            if isinstance(found, InProgress):
                held = False
                raise IdempotencyConflict("another worker is doing it", retry_after=min(found.seconds, _TAKEN_SECONDS))
            if isinstance(found, Mismatch):
                held = False
                raise IdempotencyMismatch("id: it came with another payload before", param="id")
            if found.lapsed >= self.policy.most:
                held = False  # the record stays as it is: nobody is to begin as if nothing had happened
                raise DeliveryLimit(f"{found.lapsed} workers took it up and were not heard of again")
            result = await self._work(
                envelope, send_chunk, extend, lambda: records.renew(name, holder, self._lease_seconds)
            )
            try:
                completed = await records.complete(name, holder, await encoded(result), self._keep_seconds)
            except RecordsUnavailable as error:
                # The answer is there; without a record it may be computed twice, but never lost.
                _log.warning("cannot record what is done: %s", error)
                completed = True
            held = False
            if not completed:
                raise IdempotencyConflict(_TAKEN_OVER, retry_after=1)
            return Ack(result)
        finally:
            if held:
                await self._release(records, name, holder)

    async def _release(self, records: Records, name: str, holder: str) -> None:
        try:
            await asyncio.shield(records.release(name, holder))
        except RecordsUnavailable as error:  # it lapses by itself
            _log.warning("cannot give work back: %s", error)

    async def _work(
        self,
        envelope: Envelope,
        send_chunk: SendChunk | None,
        extend: Extend | None,
        renew: Callable[[], Awaitable[bool]],
    ) -> Mapping[str, Any]:
        """Call the operation, for as long as its sender waits and nobody else has it."""
        left = None if envelope.deadline is None else envelope.deadline - self._clock()
        if left is not None and left <= 0:
            raise DeadlinePassed("it came after its sender's deadline")
        lost = asyncio.Event()
        try:
            async with asyncio.timeout(left) as limit, self._beating(limit, lost, extend, renew):
                return await self._dispatch(envelope, send_chunk)
        except TimeoutError:
            if not limit.expired():
                raise
            if lost.is_set():
                raise IdempotencyConflict(_TAKEN_OVER, retry_after=1) from None
            raise DeadlinePassed("it was not done by its sender's deadline") from None

    @asynccontextmanager
    async def _beating(
        self, limit: asyncio.Timeout, lost: asyncio.Event, extend: Extend | None, renew: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[None]:
        """Extend the delivery and renew the record inside the block; ``limit`` ends it when the record is lost."""

        async def beat() -> None:
            while not lost.is_set():
                await asyncio.sleep(self._lease_seconds / 3)
                beats = [renew()] if extend is None else [renew(), extend()]
                for found in await asyncio.gather(*beats, return_exceptions=True):
                    if isinstance(found, BaseException):  # the next one may get through, and the end finds out
                        _log.warning("cannot extend a delivery: %s", found)
                    elif found is False:
                        lost.set()
                        if not limit.expired():
                            limit.reschedule(0)

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            await cancel_and_wait(task)


async def _nothing_to_renew() -> bool:
    return True
