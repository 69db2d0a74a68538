"""Stores used nonces, so that no signature is accepted twice (RFC 9421 section 7.2.2).

A nonce is stored until its signature has expired. A wall clock that is set back must not make expired signatures valid
again: the memory store refuses signatures that expire no later than one it has deleted, and the Redis store keeps
nonces for longer.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from typing import Protocol

from runtime.errors import NoncesUnavailable
from runtime.signatures import SignatureError
from runtime.storage.redis import RedisUnavailable, SharedRedis

# Some 250 bytes each, or 400 with the longest that clients may choose. Enough for 8,300 requests a second with
# signatures that are valid for a minute, as ``Signer`` makes them.
_MAX_NONCES = 500_000
_PREFIX = "warmstart:nonce:"

# The Redis client repeats a call after a broken connection; the second run then finds its own value and succeeds.
_USE = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return redis.call('GET', KEYS[1]) == ARGV[1] and 1 or 0
"""


class Nonces(Protocol):
    """The store of used nonces."""

    async def use(self, key_id: str, nonce: str, created: int, until: int) -> None:
        """Mark a nonce as used.

        Args:
            key_id: the signing key's id; two keys may use the same nonce.
            nonce: the nonce.
            created: the Unix time in seconds at which the signature was made.
            until: the Unix time in seconds at which the signature expires.

        Raises:
            SignatureError: the nonce was used before, or may have been.
            NoncesUnavailable: the store is unavailable or full.
        """
        ...


class MemoryNonces:
    """Stores the nonces of one process, in memory; it refuses requests that were signed before the process started.

    Args:
        max_nonces: the largest number of nonces; when it is reached, requests are refused until some have expired.
        clock: Unix time in seconds.
    """

    def __init__(self, max_nonces: int = _MAX_NONCES, clock: Callable[[], float] = time.time) -> None:
        self._max_nonces = max_nonces
        self._clock = clock
        self._started = int(clock())
        self._used: set[str] = set()  # storing hashes would save 40 bytes each, and cost 2 microseconds
        # In order of use. One that expires before earlier entries is deleted after them, a window later at most.
        self._queue: deque[tuple[int, str]] = deque()
        self._latest_removed = 0  # the latest expiry of all deleted nonces

    async def use(self, key_id: str, nonce: str, created: int, until: int) -> None:
        """Mark a nonce as used, see ``Nonces.use``."""
        now = self._clock()
        while self._queue and self._queue[0][0] <= now:
            expired, name = self._queue.popleft()
            self._used.discard(name)
            self._latest_removed = max(self._latest_removed, expired)
        if created < self._started or until <= self._latest_removed:
            raise SignatureError(
                "the service was started, or its clock was set, after the request was signed; sign it again"
            )
        name = f"{key_id}\n{nonce}"  # neither contains line breaks
        if name in self._used:
            raise _replay_error()
        if len(self._used) >= self._max_nonces:
            raise NoncesUnavailable("too many signed requests; try again later", retry_after=1)
        self._used.add(name)
        self._queue.append((until, name))

    def __len__(self) -> int:
        return len(self._used)


class RedisNonces:
    """Stores the nonces of all replicas that share a Redis.

    Args:
        redis: the connection. If Redis loses its data, signatures that are still valid can be replayed unnoticed.
        window: extra seconds for which nonces are stored, which is how far clocks may differ.
        prefix: the prefix of the keys in Redis.
        clock: Unix time in seconds.
    """

    def __init__(
        self, redis: SharedRedis, window: int, prefix: str = _PREFIX, clock: Callable[[], float] = time.time
    ) -> None:
        self._redis = redis
        self._window = window
        self._prefix = prefix
        self._clock = clock

    async def use(self, key_id: str, nonce: str, created: int, until: int) -> None:
        """Mark a nonce as used, see ``Nonces.use``."""
        milliseconds = max(1, int(1000 * (until - self._clock() + self._window)))
        name = self._prefix + blake2b(f"{key_id}\n{nonce}".encode(), digest_size=16).hexdigest()
        try:
            first = await self._redis.run(_USE, [name], [secrets.token_hex(8), milliseconds])
        except RedisUnavailable:
            raise NoncesUnavailable(
                "used signatures cannot be looked up now; sign the request again and retry", retry_after=1
            ) from None
        if not first:
            raise _replay_error()


def _replay_error() -> SignatureError:
    return SignatureError("this nonce was used before; sign each request again")
