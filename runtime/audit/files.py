"""File operations of the audit log: open the log, find its rotated files, read the last record, cut a partial one."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from runtime.audit.chain import BrokenChain, read, unverified_mac, verify_line
from runtime.storage.files import MODE

_TAIL_BYTES = 65_536  # longer than any two records


def open_log(path: Path) -> tuple[int, os.stat_result]:
    """Open a log for appending, or create it.

    Returns:
        The descriptor and its ``os.fstat`` result.

    Raises:
        OSError: the file cannot be verify_line, or is a link or not a regular file.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, MODE)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return descriptor, status


def predecessors(path: Path) -> list[Path]:
    """Return the files that a log was rotated into, oldest first."""
    name = re.compile(re.escape(path.name) + r"\.[0-9]{6,}", re.ASCII)
    rotated = [other for other in path.parent.iterdir() if name.fullmatch(other.name)]
    return sorted(rotated, key=lambda other: int(other.suffix[1:]))


def last_record(path: Path, key: bytes) -> tuple[int, bytes] | None:
    """Verify a file's last record, and return its sequence number and MAC; None if the file is empty.

    Args:
        path: the file.
        key: the chain key.

    Raises:
        BrokenChain: the last line was changed, or not written with this key.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        lines = _tail(file.fileno(), os.fstat(file.fileno()).st_size, breaks=2).splitlines(keepends=True)
    if not lines:
        return None
    record = read(lines[-1])
    before = lines[-2] if len(lines) > 1 else b""
    mac = verify_line(key, bytes.fromhex(record["prev"]) if "prev" in record else unverified_mac(before), lines[-1])
    if mac is None:
        raise BrokenChain(f"the MAC of record {record['seq']} is wrong")
    return int(record["seq"]), mac


def cut_partial_record(descriptor: int, size: int, cut_path: str) -> int:
    """Move a half-written record from the end of a log to another file.

    Args:
        descriptor: the log's file descriptor.
        size: the log's size in bytes.
        cut_path: the path of the file to which the partial record is appended.

    Returns:
        The length of the partial record in bytes; 0 if there is none.
    """
    tail = _tail(descriptor, size, breaks=1)
    partial = tail[tail.rfind(b"\n") + 1 :]
    if partial:
        with open(cut_path, "ab", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, MODE)) as file:
            file.write(partial + b"\n")
        os.ftruncate(descriptor, size - len(partial))
    return len(partial)


def _tail(descriptor: int, size: int, breaks: int) -> bytes:
    """Return the end of a file from the start of a line, with at least ``breaks`` line breaks if the file has them."""
    length = _TAIL_BYTES
    while True:
        data = os.pread(descriptor, length, max(0, size - length))
        if length >= size:
            return data
        if data.count(b"\n") > breaks:
            return data.partition(b"\n")[2]
        length *= 2
