"""The header ``Idempotency-Key`` (draft-ietf-httpapi-idempotency-key-header) on the routes that generate.

The first request with a key does the work; a later one with the same key and body gets the stored result, one with
another body is 422, and one while the first still runs is 409. A request that fails stores nothing, so that it can be
sent again. Keys are separate for each caller and operation. The records are those of the events (``IDEMPOTENCY``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import Any

from aiohttp import web

from runtime.errors import IdempotencyConflict, IdempotencyMismatch, InvalidRequest
from runtime.events.envelope import MAX_ID_CHARS, TYPE_PREFIX, Envelope, is_id
from runtime.events.idempotency.records import Records
from runtime.events.outcome import Ack, Policy
from runtime.events.processor import Processor, SendChunk
from runtime.settings import Settings

HEADER = "Idempotency-Key"
REPLAYED = {"Idempotency-Replayed": "true"}
"""Header of an answer that was stored."""


class IdempotentRequests:
    """Does the work of requests with the same key once.

    Args:
        settings: the application's settings.
        open_records: opens the records; None if idempotency is off.
    """

    def __init__(self, settings: Settings, open_records: Callable[[Settings], Records | None]) -> None:
        self._settings = settings
        self._open_records = open_records

    def key_of(self, request: web.Request) -> str | None:
        """Return a request's key; None without the header.

        Raises:
            InvalidRequest: the header is no valid key, or the service keeps no records.
        """
        keys = request.headers.getall(HEADER, [])
        if not keys:
            return None
        if len(keys) > 1 or not is_id(keys[0]):
            raise InvalidRequest(
                f"{HEADER}: send one key of 1 to {MAX_ID_CHARS} printable ASCII characters without blanks", param=HEADER
            )
        if self._settings.idempotency == "off":
            raise InvalidRequest(f"{HEADER}: this service keeps no records (IDEMPOTENCY); leave it out", param=HEADER)
        return keys[0]

    async def run(
        self,
        key: str,
        caller: str,
        operation: str,
        payload: dict[str, Any],
        work: Callable[[], Awaitable[Mapping[str, Any]]],
    ) -> tuple[Mapping[str, Any], bool]:
        """Do the work, or return the result that is stored under the key.

        Args:
            key: the request's key.
            caller: an id of the caller.
            operation: the operation's name.
            payload: the request's payload.
            work: does the work and returns its result.

        Returns:
            The result, and whether it was stored.

        Raises:
            IdempotencyConflict: a request with this key is in progress.
            IdempotencyMismatch: the key was used with another payload.
            IdempotencyUnavailable: the records cannot be read.
            ServiceError: errors of the work.
        """

        async def dispatch(envelope: Envelope, send_chunk: SendChunk | None = None) -> Mapping[str, Any]:
            return await work()

        settings = self._settings
        processor = Processor(
            dispatch,
            self._records,
            Policy(max_deliveries=settings.events_max_deliveries),
            lease_seconds=settings.events_ack_seconds,
            result_seconds=settings.idempotency_ttl_seconds,
        )
        source = f"http {operation} {caller}"
        outcome = await processor(Envelope(key, source, TYPE_PREFIX + operation, operation, payload))
        if isinstance(outcome, Ack):
            return outcome.result, outcome.repeated
        error = outcome.error
        if isinstance(error, IdempotencyMismatch):
            error = IdempotencyMismatch(f"{HEADER}: it was used before with another request", param=HEADER)
        elif isinstance(error, IdempotencyConflict):
            error = IdempotencyConflict(
                f"{HEADER}: a request with this key is in progress", param=HEADER, retry_after=error.retry_after
            )
        raise error

    async def close(self, app: web.Application) -> None:
        """``on_cleanup`` signal: close the records."""
        if "_records" in self.__dict__ and self._records is not None:
            await self._records.close()

    @cached_property
    def _records(self) -> Records | None:
        return self._open_records(self._settings)
