"""Failed attempts to show a credential, counted by client address, so that guessing soon meets 429."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiohttp import web

from middleware.request_keys import CLIENT_IP
from runtime.errors import RateLimited
from runtime.networks import client_group
from runtime.rate_limits.gcra import Quota
from runtime.rate_limits.memory import MemoryLimiter

_BURST = 0.5  # of a minute's failures: who mistyped a few times waits seconds for the next try, not the whole minute


class Failures:
    """One for everything that checks credentials, each in its process. It comes behind the client address.

    Args:
        per_minute: failures of one address in any 60 seconds, half of them at once; an IPv6 address stands for its /64.
        clients: most addresses remembered.
        clock: monotonic time in seconds.
    """

    def __init__(self, per_minute: int, clients: int = 100_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._quota = Quota.share(per_minute, _BURST)
        self._limiter = MemoryLimiter(clients, clock)

    def check(self, request: web.Request) -> None:
        """Refuse to say whether a credential is good.

        Raises:
            RateLimited: the client's address has failed too often.
        """
        used = self._limiter.take(client_group(request[CLIENT_IP]), self._quota, 0)
        if used.remaining:
            return
        retry_after = used.reset - (self._quota.burst - 1) * self._quota.interval
        raise RateLimited("too many wrong keys or signatures from your address; wait", retry_after=retry_after)

    def failed(self, request: web.Request) -> None:
        """Count a failure. Who is refused already is not kept out for longer."""
        self._limiter.take(client_group(request[CLIENT_IP]), self._quota)
