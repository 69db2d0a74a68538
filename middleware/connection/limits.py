"""How many connections are open, in all and per address, and how many the system allows."""

from __future__ import annotations

import logging
import resource
import time
from collections import Counter
from collections.abc import Callable, Sequence

from runtime.networks import Address, Network, NetworkSet, client_group

_log = logging.getLogger("warmstart.edge")

_OTHER_FILES = 256  # beside connections: models, stores, logs, sockets of our own


class ConnectionLimiter:
    """Counts open connections, in all and per address.

    Args:
        total: most of them.
        per_address: most of one address.
        uncounted: addresses without a limit of their own.
        clock: seconds; says when to log again.
    """

    def __init__(
        self, total: int, per_address: int, uncounted: Sequence[Network], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.open = 0
        self.refused = 0
        self.by_address: Counter[str] = Counter()
        self._total, self._per_address = total, per_address
        self._uncounted = NetworkSet(uncounted)
        self._clock = clock
        self._logged = (-1.0, 0)  # when, and how many had been refused by then

    def take(self) -> bool:
        """One place of all; False if there is none."""
        if self.open >= self._total:
            return self._refuse("MAX_CONNECTIONS")
        self.open += 1
        return True

    def assign(self, address: Address | None) -> str | None:
        """Say whose a taken place is.

        Returns:
            What to give to ``free``; None if the address has had its share.
        """
        if address is None or address in self._uncounted:
            return ""
        group = client_group(address)
        if self.by_address[group] >= self._per_address:
            self._refuse("MAX_CONNECTIONS_PER_ADDRESS")
            return None
        self.by_address[group] += 1
        return group

    def free(self, group: str) -> None:
        """Give a place back."""
        self.open -= 1
        if group:
            self.by_address[group] -= 1
            if not self.by_address[group]:
                del self.by_address[group]

    def _refuse(self, limit: str) -> bool:
        self.refused += 1
        now, (logged, before) = self._clock(), self._logged
        if logged < 0 or now - logged >= 1:
            self._logged = now, self.refused
            _log.warning("connections refused: %d (%s)", self.refused - before, limit)
        return False


def raise_fd_limit(connections: int) -> None:
    """Let this process open so many sockets, as far as the system lets it; many start with room for 1024 files."""
    needed = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < needed:
            _log.warning("MAX_CONNECTIONS: the system allows %d open files, %d are needed", most, needed)
