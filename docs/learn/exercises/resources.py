"""Exercise: a response cache that cannot grow, and computes nothing twice. See docs/learn/resources.md."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable


class Cache:
    """Keeps answers by key.

    Args:
        max_bytes: the size of all answers together; the least recently used are removed first.
        ttl: how long an answer is kept, in seconds.
        clock: returns monotonic seconds.
    """

    def __init__(self, max_bytes: int, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._answers: dict[str, bytes] = {}

    async def get(self, key: str, compute: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the answer of a key; compute it if it is not kept.

        Calls with the same key at the same time share one computation. It ends with its error for all of them, and
        errors are not kept. A caller that is cancelled does not take the answer from the others.
        """
        if key not in self._answers:
            self._answers[key] = await compute()
        return self._answers[key]
