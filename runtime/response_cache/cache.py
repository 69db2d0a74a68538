"""Response cache: replays stored answers and shares the computation of identical concurrent requests.

Only complete answers are stored. A failing store never fails a request: the answer is computed without it, and the
store is not called again for ``PAUSE_SECONDS``.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from runtime.backoff import FailurePause
from runtime.encoder_types import EncoderOutput
from runtime.errors import CacheUnavailable
from runtime.response_cache.codec import CachedAnswer, CorruptEntry, pack, pack_output, unpack, unpack_output
from runtime.response_cache.single_flight import SingleFlight, Start
from runtime.response_cache.store import Size, Store, StoreFailed
from runtime.status import CacheStats
from runtime.types import CacheUse, Token

_log = logging.getLogger("warmstart.cache")
T = TypeVar("T")

PAUSE_SECONDS = 5.0
"""Seconds without calls to a store after it failed."""

MAX_LOGPROBS = 20_000
"""Maximum number of log-probabilities in a cached response: packing or unpacking more would block the event loop."""

_ENTRIES_PER_CALL = 256  # results of encoders in one call of the store, so that it does not take long
_STORE_TIMEOUT_SECONDS = 1.0  # a request's limit on one store call, whatever timeouts the store itself has


@dataclass(slots=True)
class CacheCounters:
    """Counters of this process since it started; ``CacheStats`` describes the fields."""

    hits: int = 0
    shared: int = 0
    misses: int = 0
    bypassed: int = 0
    errors: int = 0
    saved_tokens: int = 0
    saved_seconds: float = 0.0


class ResponseCache:
    """Looks answers up in a store and runs identical concurrent requests once. Implements ``handlers.protocols.Cache``.

    Args:
        store: where answers are stored.
        limit_bytes: the store's size limit; only reported by ``stats``.
        ttl_seconds: the store's entry lifetime; only reported by ``stats``.
        per_caller: whether each caller has separate entries.
        clock: returns Unix time in seconds.
        monotonic: returns monotonic time in seconds.
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
        self.counters = CacheCounters()
        self._store = store
        self._limit_bytes = limit_bytes
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._pause = FailurePause(PAUSE_SECONDS, monotonic)
        self._lock = threading.Lock()  # guards ``counters``: several event loops may use the cache
        self._clears = 0
        self._flights: dict[tuple[asyncio.AbstractEventLoop, str], SingleFlight] = {}

    @asynccontextmanager
    async def answer(
        self,
        key: str,
        model: str,
        lease: AsyncExitStack,
        start: Start,
        *,
        reuse: bool,
        max_age: float,
        background: bool = False,
    ) -> AsyncIterator[tuple[CacheUse, int, AsyncIterator[Token]]]:
        """Yield a cached response, an answer that another request is computing, or one computed now and then stored.

        ``handlers.protocols.Cache.answer`` describes the arguments.
        """
        flight_key = asyncio.get_running_loop(), key
        cached = await self._find(key) if reuse and flight_key not in self._flights else None
        age = max(self._clock() - cached.created, 0.0) if cached is not None else 0.0
        if cached is not None and age <= max_age:
            self._count(hits=1, saved_tokens=len(cached.tokens), saved_seconds=cached.seconds)
            yield CacheUse("hit", key, age), cached.prompt_tokens, _replay(cached)
            return
        flight = self._flights.get(flight_key) if reuse else None
        # An interactive request never joins a background one, which runs only when the engine has nothing else to do.
        if flight is not None and flight.open and (background or not flight.background):
            use = CacheUse("shared", key)
            self._count(shared=1)
        else:
            use = CacheUse("miss" if reuse else "bypass", key)
            self._count(**{"misses" if reuse else "bypassed": 1})
            flight = SingleFlight(
                model, lease.pop_all(), start, lambda done: self._on_done(flight_key, done), background=background
            )
            self._flights[flight_key] = flight
        async with flight.subscribe(), aclosing(flight.read()) as tokens:
            try:
                yield use, await flight.prompt_tokens(), tokens
            finally:
                if use.status == "shared":
                    self._count(saved_tokens=len(flight.tokens), saved_seconds=flight.seconds)

    async def outputs(
        self,
        keys: Sequence[str],
        model: str,
        compute: Callable[[Sequence[int]], Awaitable[Sequence[EncoderOutput]]],
        *,
        reuse: bool,
        max_age: float,
    ) -> tuple[list[EncoderOutput], CacheUse]:
        """Return what an encoder makes of inputs, each from the store or computed and then stored.

        ``handlers.protocols.Cache.outputs`` describes the arguments and the result. Each input is counted by itself.
        """
        cached = await self._find_outputs(keys, max_age) if reuse else {}
        missing = [number for number in range(len(keys)) if number not in cached]
        self._count(hits=len(cached), **{"misses" if reuse else "bypassed": len(missing)})
        found = {number: output for number, (output, _) in cached.items()}
        if missing:
            clears = self._clears
            found |= zip(missing, await compute(missing), strict=True)
            if self._clears == clears:
                await self._put_outputs(model, {keys[number]: found[number] for number in missing})
        status: Literal["hit", "miss", "bypass"] = "hit" if not missing else "miss" if reuse else "bypass"
        age = None if missing else max(age for _, age in cached.values())
        use = CacheUse(status, keys[0] if len(keys) == 1 else None, age)
        return [found[number] for number in range(len(keys))], use

    def bypass(self) -> None:
        """Count an answer that does not go through the cache."""
        self._count(bypassed=1)

    async def stats(self) -> CacheStats:
        """Return the store's size and this process's counters. The size is 0 if the store does not answer."""
        size = await self._try(self._store.size) or Size(0, 0)
        counts, store = self.counters, self._store.counters
        return CacheStats(
            store=self._store.name,
            entries=size.entries,
            bytes=size.bytes,
            limit_bytes=self._limit_bytes,
            hits=counts.hits,
            shared=counts.shared,
            misses=counts.misses,
            bypassed=counts.bypassed,
            evictions=store.evictions,
            expired=store.expired,
            errors=counts.errors + store.damaged,
            saved_tokens=counts.saved_tokens,
            saved_seconds=round(counts.saved_seconds, 3),
            ttl_seconds=self._ttl_seconds,
        )

    async def clear(self, *, model: str | None = None, prefix: str | None = None) -> int:
        """Remove entries: all, or those that match a model and a key prefix.

        Answers that are being computed now and match are not stored either.

        Returns:
            The number of entries removed from the store.

        Raises:
            CacheUnavailable: the store cannot be reached.
        """
        self._clears += 1  # results that encoders compute now are not stored either, whichever match
        for (_, key), flight in list(self._flights.items()):
            if key.startswith(prefix or "") and model in (None, flight.model):
                flight.keep = False  # it started before this call and would be stored after it
        removed = await self._try(lambda: self._store.remove(model=model, prefix=prefix or ""))
        if removed is None:
            raise CacheUnavailable(
                f"the response cache's store ({self._store.name}) is unavailable; entries may not have been removed",
                retry_after=PAUSE_SECONDS,
            )
        return removed

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    async def _find(self, key: str) -> CachedAnswer | None:
        value = await self._try(lambda: self._store.get(key))
        if value is None:
            return None
        try:
            return unpack(key, value)
        except CorruptEntry:
            await self._remove_damaged(key)
            return None

    async def _remove_damaged(self, key: str) -> None:
        _log.warning("a cached answer is damaged and is removed", extra={"key": key})
        self._count(errors=1)
        await self._try(lambda: self._store.remove(prefix=key))

    async def _find_outputs(self, keys: Sequence[str], max_age: float) -> dict[int, tuple[EncoderOutput, float]]:
        """Return the cached results that are not too old, with their ages in seconds, by the index of their keys."""
        found = dict[int, tuple[EncoderOutput, float]]()
        for start in range(0, len(keys), _ENTRIES_PER_CALL):
            some = keys[start : start + _ENTRIES_PER_CALL]
            values = await self._try(partial(self._store.get_many, some))
            for number, value in enumerate(values or (), start):
                if value is None:
                    continue
                try:
                    output, created = unpack_output(keys[number], value)
                except CorruptEntry:
                    await self._remove_damaged(keys[number])
                    continue
                age = max(self._clock() - created, 0.0)
                if age <= max_age:
                    found[number] = output, age
            await asyncio.sleep(0)
        return found

    async def _put_outputs(self, model: str, outputs: Mapping[str, EncoderOutput]) -> None:
        created = self._clock()
        keys = list(outputs)

        def put(some: Sequence[str]) -> None:
            self._store.put_many(model, {key: pack_output(key, outputs[key], created) for key in some})

        for start in range(0, len(keys), _ENTRIES_PER_CALL):
            await self._try(partial(put, keys[start : start + _ENTRIES_PER_CALL]))
            await asyncio.sleep(0)

    async def _on_done(self, flight_key: tuple[asyncio.AbstractEventLoop, str], flight: SingleFlight) -> None:
        """Store the answer of a finished computation, and stop further requests from joining it."""
        try:
            if flight.complete and flight.keep and _logprobs(flight.tokens) <= MAX_LOGPROBS:
                _, key = flight_key
                answer = CachedAnswer(self._clock(), flight.seconds, await flight.prompt_tokens(), tuple(flight.tokens))
                value = pack(key, answer)
                await self._try(lambda: self._store.put(key, flight.model, value))
        finally:
            if self._flights.get(flight_key) is flight:
                del self._flights[flight_key]

    async def _try(self, call: Callable[[], T]) -> T | None:
        """Call the store; return None if the call fails or the store is paused after a failure."""
        if self._pause.active:
            return None
        try:
            if not self._store.blocking:
                return call()
            async with asyncio.timeout(_STORE_TIMEOUT_SECONDS):
                return await asyncio.to_thread(self._unless_paused, call)
        except (StoreFailed, TimeoutError) as error:
            self._count(errors=1)
            with self._lock:
                first = not self._pause.active
                self._pause.start()
            if first:
                reason = str(error) or f"{self._store.name} did not answer within {_STORE_TIMEOUT_SECONDS:g} s"
                _log.warning("answers are neither read from the cache nor stored for %g s: %s", PAUSE_SECONDS, reason)
            return None

    def _unless_paused(self, call: Callable[[], T]) -> T | None:
        # Another call may have failed, and paused the store, while this one waited for a thread.
        return None if self._pause.active else call()

    def _count(self, **more: float) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self.counters, name, getattr(self.counters, name) + number)


def _logprobs(tokens: Sequence[Token]) -> int:
    return sum(1 + len(token.top_logprobs) for token in tokens)


async def _replay(cached: CachedAnswer) -> AsyncGenerator[Token, None]:
    for token in cached.tokens:
        yield token
