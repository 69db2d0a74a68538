"""Reads and edits a file of key records; an edit is atomic, and writers exclude each other."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from runtime.keys.records import MAX_FILE_BYTES, KeyRecord, check_distinct, parse_records
from runtime.storage.files import replace_durably


def edit(path: Path, change: Callable[[list[KeyRecord]], list[KeyRecord]]) -> None:
    """Replace a file's records, or create the file. Owner and mode are kept; a new file is for its owner only.

    Writers exclude each other with a lock file beside it. The lock file is never deleted, because a waiting writer
    would then lock a file that others no longer use. Readers never see a partial file: the new one is written and
    synced, then renamed over the old one.

    Args:
        path: the file's path; if it is a link, its target is changed.
        change: a function from the old records to the new ones, called with the lock held. If it raises, the file is
            unchanged.

    Raises:
        ValueError: the old or new records are invalid; the message names the record and field.
        OSError: the file cannot be read or written; it is unchanged.
    """
    path = path.resolve()
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        records = change(read(path) if path.exists() else [])
        check_distinct(records)
        data = "".join(f"{record.line()}\n" for record in records).encode()
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"{path} would be larger than {MAX_FILE_BYTES} bytes; revoke keys that have expired")
        replace_durably(str(path), data)
    finally:
        os.close(lock)  # also unlocks


def read(path: Path) -> list[KeyRecord]:
    """Read the records in a file.

    Raises:
        ValueError: the records are invalid; the message names the file, the record and the field.
        OSError: the file cannot be read.
    """
    try:
        return parse_records(path.read_bytes().decode())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
