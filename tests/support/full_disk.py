"""A disk that is full, for files of this process."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def full_disk(most: int | Path) -> Iterator[None]:
    """No file of this process grows past so many bytes (or this file's): writes are cut short, then fail."""
    size = most.stat().st_size if isinstance(most, Path) else most
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
