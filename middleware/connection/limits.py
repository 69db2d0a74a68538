"""Limits the number of open connections, in total and per address, and raises the limit of open files to match."""

from __future__ import annotations

import logging
import resource
import time
from collections import Counter
from collections.abc import Callable, Sequence

from runtime.networks import Address, Network, NetworkSet, client_group

_log = logging.getLogger("warmstart.edge")

_OTHER_FILES = 256  # file descriptors besides connections: models, stores, logs, own sockets


class ConnectionLimiter:
    """Counts and limits open connections, in total and per address.

    Args:
        max_total: the largest number of open connections.
        max_per_address: the largest number per address; IPv6 addresses count by /64.
        uncounted: networks whose addresses count in the total only.
        clock: monotonic time in seconds, which limits refusals in the log to one line a second.
    """

    def __init__(
        self,
        max_total: int,
        max_per_address: int,
        uncounted: Sequence[Network],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.open = 0
        self.refused = 0
        self.by_address: Counter[str] = Counter()
        self._max_total, self._max_per_address = max_total, max_per_address
        self._uncounted = NetworkSet(uncounted)
        self._clock = clock
        self._last_log = (-1.0, 0)  # time of the last log line, and the number refused by then

    def acquire(self) -> bool:
        """Take a slot from the total; return False if none is free."""
        if self.open >= self._max_total:
            return self._refuse("MAX_CONNECTIONS")
        self.open += 1
        return True

    def assign(self, address: Address | None) -> str | None:
        """Assign a taken slot to an address.

        Args:
            address: the peer's address; None for a unix socket.

        Returns:
            The group to pass to ``release``; None if the address is at its limit.
        """
        if address is None or address in self._uncounted:
            return ""
        group = client_group(address)
        if self.by_address[group] >= self._max_per_address:
            self._refuse("MAX_CONNECTIONS_PER_ADDRESS")
            return None
        self.by_address[group] += 1
        return group

    def release(self, group: str) -> None:
        """Release a slot.

        Args:
            group: the result of ``assign``; "" if that was not called or refused.
        """
        self.open -= 1
        if group:
            self.by_address[group] -= 1
            if not self.by_address[group]:
                del self.by_address[group]

    def _refuse(self, limit: str) -> bool:
        self.refused += 1
        now, (logged, before) = self._clock(), self._last_log
        if logged < 0 or now - logged >= 1:
            self._last_log = now, self.refused
            _log.warning("connections refused: %d (%s)", self.refused - before, limit)
        return False


def raise_fd_limit(connections: int) -> None:
    """Raise RLIMIT_NOFILE for so many connections, up to the hard limit; the usual soft limit is 1024 files."""
    needed = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < needed:
            _log.warning(
                "MAX_CONNECTIONS: the system allows %d open files, %d are needed; raise the hard limit (ulimit -Hn)",
                allowed,
                needed,
            )
