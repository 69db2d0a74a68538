"""Waits for what another process does, from tests without an event loop (in one: ``fakes.until``)."""

from __future__ import annotations

import time
from collections.abc import Callable

_PAUSE_SECONDS = 0.02


def wait_until(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait until a condition holds. A refused or broken connection counts as not yet.

    Raises:
        TimeoutError: it did not hold within so many seconds.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        if time.monotonic() > end:
            raise TimeoutError(f"did not happen within {seconds:g} s")
        time.sleep(_PAUSE_SECONDS)
