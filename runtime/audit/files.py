"""The files of an audit log: how they are opened, what they end with, which there are."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from runtime.audit.chain import Broken, opened, read, shown_mac
from runtime.storage.files import MODE

_TAIL_BYTES = 65_536  # longer than any two records


def open_log(path: Path) -> tuple[int, os.stat_result]:
    """Open a log for appending, or make it.

    Returns:
        The descriptor, and what the file is like.

    Raises:
        OSError: that is not possible, or it is a link or no regular file.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, MODE)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return descriptor, status


def predecessors(path: Path) -> list[Path]:
    """The files that a log was rotated into, oldest first."""
    name = re.compile(re.escape(path.name) + r"\.[0-9]{6,}", re.ASCII)
    found = [other for other in path.parent.iterdir() if name.fullmatch(other.name)]
    return sorted(found, key=lambda other: int(other.suffix[1:]))


def last_record(path: Path, key: bytes) -> tuple[int, bytes] | None:
    """Number and MAC of a file's last record; None if it has none.

    Args:
        key: of the chain.

    Raises:
        Broken: the last line was changed, or not written with this key.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        lines = _tail(file.fileno(), os.fstat(file.fileno()).st_size, breaks=2).splitlines(keepends=True)
    if not lines:
        return None
    record = read(lines[-1])
    before = lines[-2] if len(lines) > 1 else b""
    mac = opened(key, bytes.fromhex(record["prev"]) if "prev" in record else shown_mac(before), lines[-1])
    if mac is None:
        raise Broken(f"the MAC of record {record['seq']} is wrong")
    return int(record["seq"]), mac


def cut_half(descriptor: int, size: int, aside: str) -> int:
    """Move a half-written record from the end of a log to another file.

    Args:
        descriptor: of the log, which is ``size`` bytes long.
        aside: path of the file to add it to.

    Returns:
        Its length in bytes.
    """
    tail = _tail(descriptor, size, breaks=1)
    half = tail[tail.rfind(b"\n") + 1 :]
    if half:
        with open(aside, "ab", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, MODE)) as file:
            file.write(half + b"\n")
        os.ftruncate(descriptor, size - len(half))
    return len(half)


def _tail(descriptor: int, size: int, breaks: int) -> bytes:
    """The end of a file, from behind a line break on, with so many more of them at least if it has them."""
    length = _TAIL_BYTES
    while True:
        data = os.pread(descriptor, length, max(0, size - length))
        if length >= size:
            return data
        if data.count(b"\n") > breaks:
            return data.partition(b"\n")[2]
        length *= 2
