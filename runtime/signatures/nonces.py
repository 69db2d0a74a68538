"""Nonces that were used, so that no signature is good twice (RFC 9421 section 7.2.2).

A nonce is remembered until the signature it came with has expired. Wall clocks that are set back must not bring expired
signatures to life again: memory turns down whatever would have expired before something that it has forgotten, Redis
remembers for longer.
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

# Of some 250 bytes, 400 where a client names the longest; 8,300 a second of the client's signatures, which are good for
# a minute.
_MOST = 500_000
_PREFIX = "warmstart:nonce:"

# A second run of the same call, which the client makes after a broken connection, finds its own mark.
_USE = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return redis.call('GET', KEYS[1]) == ARGV[1] and 1 or 0
"""


class Nonces(Protocol):
    """Where used nonces are remembered."""

    async def use(self, key_id: str, nonce: str, created: int, until: int) -> None:
        """Use a nonce.

        Args:
            key_id: whose it is; two keys may use the same.
            nonce: it.
            created: Unix time at which its signature was made.
            until: Unix time from which on that signature is good no more.

        Raises:
            SignatureError: it was used before, or may have been.
            NoncesUnavailable: that cannot be told.
        """
        ...


class MemoryNonces:
    """Of one process, which forgets them when it ends: what was signed before it started is not let in.

    Args:
        most: nonces remembered; with more, nobody gets in until some have expired.
        clock: Unix time in seconds.
    """

    def __init__(self, most: int = _MOST, clock: Callable[[], float] = time.time) -> None:
        self._most = most
        self._clock = clock
        self._started = int(clock())
        self._used: set[str] = set()  # a hash of each would save 40 bytes, and cost 2 microseconds
        # In the order of use. One that expires before those in front of it waits for them, for a window at most.
        self._queue: deque[tuple[int, str]] = deque()
        self._forgotten = 0  # no signature that expires later has been forgotten

    async def use(self, key_id: str, nonce: str, created: int, until: int) -> None:
        """See ``Nonces.use``."""
        now = self._clock()
        while self._queue and self._queue[0][0] <= now:
            expired, name = self._queue.popleft()
            self._used.discard(name)
            self._forgotten = max(self._forgotten, expired)
        if created < self._started or until <= self._forgotten:
            raise SignatureError("the service has started, or its clock was set, since this was signed; sign it anew")
        name = f"{key_id}\n{nonce}"  # neither has line breaks
        if name in self._used:
            raise _replayed()
        if len(self._used) >= self._most:
            raise NoncesUnavailable(
                "more signed requests than this service can remember; try again later", retry_after=1
            )
        self._used.add(name)
        self._queue.append((until, name))

    def __len__(self) -> int:
        return len(self._used)


class RedisNonces:
    """Of all replicas with one Redis.

    Args:
        redis: that Redis. Losing its data is what a restart is for ``MemoryNonces``, but nobody would notice.
        window: seconds longer than needed that they are remembered, which is how far apart clocks may be.
        prefix: of the names there.
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
        """See ``Nonces.use``."""
        milliseconds = max(1, int(1000 * (until - self._clock() + self._window)))
        name = self._prefix + blake2b(f"{key_id}\n{nonce}".encode(), digest_size=16).hexdigest()
        try:
            first = await self._redis.run(_USE, [name], [secrets.token_hex(8), milliseconds])
        except RedisUnavailable:
            raise NoncesUnavailable(
                "whether this signature was used before cannot be told now; sign anew and try again", retry_after=1
            ) from None
        if not first:
            raise _replayed()


def _replayed() -> SignatureError:
    return SignatureError("this nonce was used before; sign each request anew")
