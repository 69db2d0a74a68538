"""Answers given again: those kept in a store, and those that somebody else is waiting for already.

Only whole answers are kept. A store that fails never fails a request: the answer is computed without it, and the store
is left alone for a moment.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from runtime.errors import CacheUnavailable
from runtime.response_cache.codec import CachedAnswer, CorruptEntry, pack, unpack
from runtime.response_cache.single_flight import SingleFlight, Start
from runtime.response_cache.store import Size, Store, StoreFailed
from runtime.types import CacheStats, CacheUse, Token

_log = logging.getLogger("warmstart.cache")
T = TypeVar("T")

PAUSE_SECONDS = 5.0
"""How long a store that failed is left alone."""

MOST_LOGPROBS = 20_000
"""Log-probabilities of a kept answer: packing and unpacking more would hold up the event loop for too long."""

_MOST_SECONDS = 1.0  # that a request waits for a store, whatever the store waits for


@dataclass(slots=True)
class CacheCounters:
    """What was done since the process began; see ``CacheStats``."""

    hits: int = 0
    shared: int = 0
    misses: int = 0
    bypassed: int = 0
    errors: int = 0
    saved_tokens: int = 0
    saved_seconds: float = 0.0


class ResponseCache:
    """See the module. Implements ``handlers.protocols.Cache``.

    Args:
        store: where answers are kept.
        limit_bytes: what the store is bounded by, and ``ttl_seconds`` how long it keeps; told in ``stats``.
        per_caller: whether callers' answers are kept apart.
        clock: Unix time in seconds.
        monotonic: seconds that never go back.
    """

    def __init__(
        self,
        store: Store,
        *,
        limit_bytes: int,
        ttl_seconds: float,
        per_caller: bool,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self.per_caller = per_caller
        self.counts = CacheCounters()
        self._store = store
        self._limit_bytes = limit_bytes
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._monotonic = monotonic
        self._paused_until = float("-inf")
        self._lock = threading.Lock()  # of the counts: event loops may be many
        self._flights: dict[tuple[asyncio.AbstractEventLoop, str], SingleFlight] = {}

    @asynccontextmanager
    async def answer(
        self,
        key: str,
        model: str,
        held: AsyncExitStack,
        start: Start,
        *,
        reuse: bool,
        max_age: float,
        queued: bool = False,
    ) -> AsyncIterator[tuple[CacheUse, int, AsyncIterator[Token]]]:
        """See ``handlers.protocols.Cache``."""
        place = asyncio.get_running_loop(), key
        kept = await self._find(key) if reuse and place not in self._flights else None
        age = max(self._clock() - kept.created, 0.0) if kept is not None else 0.0
        if kept is not None and age <= max_age:
            self._count(hits=1, saved_tokens=len(kept.tokens), saved_seconds=kept.seconds)
            yield CacheUse("hit", key, age), kept.prompt_tokens, _replayed(kept)
            return
        flight = self._flights.get(place) if reuse else None
        # Who waits for an answer does not wait for one that is computed when nothing else is to be.
        if flight is not None and flight.open and (queued or not flight.queued):
            use = CacheUse("shared", key)
            self._count(shared=1)
        else:
            use = CacheUse("miss" if reuse else "bypass", key)
            self._count(**{"misses" if reuse else "bypassed": 1})
            flight = SingleFlight(model, held.pop_all(), start, lambda done: self._land(place, done), queued=queued)
            self._flights[place] = flight
        async with flight.joined(), aclosing(flight.read()) as tokens:
            try:
                yield use, await flight.prompt_tokens(), tokens
            finally:
                if use.status == "shared":
                    self._count(saved_tokens=len(flight.tokens), saved_seconds=flight.seconds)

    def bypass(self) -> None:
        """See ``handlers.protocols.Cache``."""
        self._count(bypassed=1)

    async def stats(self) -> CacheStats:
        """See ``handlers.protocols.Cache``. A store that does not answer tells of no entries."""
        size = await self._try(self._store.size) or Size(0, 0)
        counts, tally = self.counts, self._store.tally
        return CacheStats(
            store=self._store.name,
            entries=size.entries,
            bytes=size.bytes,
            limit_bytes=self._limit_bytes,
            hits=counts.hits,
            shared=counts.shared,
            misses=counts.misses,
            bypassed=counts.bypassed,
            evictions=tally.evictions,
            expired=tally.expired,
            errors=counts.errors + tally.damaged,
            saved_tokens=counts.saved_tokens,
            saved_seconds=round(counts.saved_seconds, 3),
            ttl_seconds=self._ttl_seconds,
        )

    async def clear(self, *, model: str | None = None, prefix: str | None = None) -> int:
        """See ``handlers.protocols.Cache``."""
        for (_, key), flight in list(self._flights.items()):
            if key.startswith(prefix or "") and model in (None, flight.model):
                flight.keep = False  # it began before, and ends after
        removed = await self._try(lambda: self._store.remove(model=model, prefix=prefix or ""))
        if removed is None:
            raise CacheUnavailable(
                f"the kept answers cannot be reached ({self._store.name}); nothing is dropped for certain",
                retry_after=PAUSE_SECONDS,
            )
        return removed

    def close(self) -> None:
        """Let go of the store."""
        self._store.close()

    async def _find(self, key: str) -> CachedAnswer | None:
        value = await self._try(lambda: self._store.get(key))
        if value is None:
            return None
        try:
            return unpack(key, value)
        except CorruptEntry:
            _log.warning("a kept answer is damaged and dropped", extra={"key": key})
            self._count(errors=1)
            await self._try(lambda: self._store.remove(prefix=key))
            return None

    async def _land(self, place: tuple[asyncio.AbstractEventLoop, str], flight: SingleFlight) -> None:
        """Keep what a flight brought, and let nobody join it any more."""
        try:
            if flight.complete and flight.keep and _logprobs(flight.tokens) <= MOST_LOGPROBS:
                _, key = place
                answer = CachedAnswer(self._clock(), flight.seconds, await flight.prompt_tokens(), tuple(flight.tokens))
                value = pack(key, answer)
                await self._try(lambda: self._store.put(key, flight.model, value))
        finally:
            if self._flights.get(place) is flight:
                del self._flights[place]

    async def _try(self, call: Callable[[], T]) -> T | None:
        """Call the store; None if that fails, or is not to be tried now."""
        if self._monotonic() < self._paused_until:
            return None
        try:
            if not self._store.blocking:
                return call()
            async with asyncio.timeout(_MOST_SECONDS):
                return await asyncio.to_thread(self._unless_paused, call)
        except (StoreFailed, TimeoutError) as error:
            self._count(errors=1)
            with self._lock:
                first = self._monotonic() >= self._paused_until
                self._paused_until = self._monotonic() + PAUSE_SECONDS
            if first:
                reason = str(error) or f"{self._store.name} did not answer within {_MOST_SECONDS:g} s"
                _log.warning("answers are neither read nor kept for %g s: %s", PAUSE_SECONDS, reason)
            return None

    def _unless_paused(self, call: Callable[[], T]) -> T | None:
        # It may have failed while this call waited for a thread.
        return None if self._monotonic() < self._paused_until else call()

    def _count(self, **more: float) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + number)


def _logprobs(tokens: Sequence[Token]) -> int:
    return sum(1 + len(token.top_logprobs) for token in tokens)


async def _replayed(kept: CachedAnswer) -> AsyncGenerator[Token, None]:
    for token in kept.tokens:
        yield token
