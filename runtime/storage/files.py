"""Replaces a file's content durably."""

from __future__ import annotations

import os
from contextlib import suppress

MODE = 0o600


def replace_durably(path: str, content: bytes) -> None:
    """Replace a file's content atomically: readers see the old content or the new one whole, even after a power cut.

    The file keeps its owner and its mode; a new file is readable by its owner only. Writers must exclude each other.

    Args:
        path: the file's path; its folder must be writable.
        content: the new content.

    Raises:
        OSError: the file could not be replaced; the old one is still there.
    """
    new = f"{path}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with suppress(FileNotFoundError):
                old = os.stat(path)
                os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, old.st_mode & 0o777)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise
    sync_folder(os.path.dirname(path) or ".")


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Write a folder's entries to the disk; otherwise a power cut may lose a rename in it.

    Args:
        path: the folder's path.

    Raises:
        OSError: the folder cannot be opened or written.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
