"""Simulates a full disk for files that this process writes."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def full_disk(most: int | Path) -> Iterator[None]:
    """Limit the size of every file that this process writes: writes are cut short, then fail.

    Args:
        most: the limit in bytes, or a file whose size is the limit.
    """
    size = most.stat().st_size if isinstance(most, Path) else most
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
