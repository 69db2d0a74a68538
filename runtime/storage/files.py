"""Durable replacement of files."""

from __future__ import annotations

import os

MODE = 0o600


def replace_durably(path: str, content: bytes) -> None:
    """Write a file anew: whoever reads it, even after a power cut, sees the old content or the new one whole.

    Raises:
        OSError: it could not be; the old one is still there.
    """
    new = f"{path}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
    try:
        if os.write(descriptor, content) != len(content):
            raise OSError(f"no room for {path}")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(new, path)
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # this name, and those that were given or taken since the last time
    finally:
        os.close(folder)
