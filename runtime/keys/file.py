"""Changes a file of keys' records so that nothing is lost: one writer at a time, and whole or not at all."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from runtime.keys.records import MOST_BYTES, KeyRecord, check_distinct, parse_records
from runtime.storage.files import replace_durably


def edit(path: Path, change: Callable[[list[KeyRecord]], list[KeyRecord]]) -> None:
    """Replace a file's records, or make the file. Its owner and mode stay; a new one is for its owner only.

    Writers wait for each other at a lock file beside it, which stays, because who waits for it must not be left with a
    name that nobody else locks. Readers never see half a file: the new one takes the old one's place, on disk already.

    Args:
        path: of the file; where it is a link, what it leads to is changed.
        change: old records to new ones; called with the lock held. What it raises leaves the file as it was.

    Raises:
        ValueError: what is in the file, or what would be, is wrong; the message names the record and field.
        OSError: it cannot be read or written; the file is as it was.
    """
    path = path.resolve()
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        records = change(read(path) if path.exists() else [])
        check_distinct(records)
        data = "".join(f"{record.line()}\n" for record in records).encode()
        if len(data) > MOST_BYTES:
            raise ValueError(f"{path} would be larger than {MOST_BYTES} bytes; revoke keys that have expired")
        replace_durably(str(path), data)
    finally:
        os.close(lock)  # which unlocks


def read(path: Path) -> list[KeyRecord]:
    """A file's records.

    Raises:
        ValueError: they are wrong; the message names the file, the record and the field.
        OSError: it cannot be read.
    """
    try:
        return parse_records(path.read_bytes().decode())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
