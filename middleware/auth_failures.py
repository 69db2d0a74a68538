"""Counts failed authentications per client address, so that guessing soon gets 429."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiohttp import web

from middleware.request_keys import CLIENT_IP
from runtime.errors import RateLimited
from runtime.networks import client_group
from runtime.rate_limits.gcra import Quota
from runtime.rate_limits.memory import MemoryLimiter

_BURST = 0.5  # share of a minute's failures: after a few typing errors the next try is seconds away, not a minute


class Failures:
    """Counts and limits failed authentications per client address, in this process.

    The API key and signature checks share one. It needs ``CLIENT_IP`` on the request.

    Args:
        per_minute: failures allowed per address in any 60 seconds, half of them at once; IPv6 addresses count by /64.
        clients: the largest number of addresses remembered.
        clock: monotonic time in seconds.
    """

    def __init__(self, per_minute: int, clients: int = 100_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._quota = Quota.share(per_minute, _BURST)
        self._limiter = MemoryLimiter(clients, clock)

    def check(self, request: web.Request) -> None:
        """Raise RateLimited if the client's address is above the limit.

        Raises:
            RateLimited: the client's address has failed too often.
        """
        used = self._limiter.take(client_group(request[CLIENT_IP]), self._quota, 0)
        if used.remaining:
            return
        retry_after = used.reset - (self._quota.burst - 1) * self._quota.interval
        raise RateLimited("too many invalid keys or signatures from your address; wait", retry_after=retry_after)

    def failed(self, request: web.Request) -> None:
        """Count a failure. A failure above the limit is not counted, so it does not lengthen the wait."""
        self._limiter.take(client_group(request[CLIENT_IP]), self._quota)
