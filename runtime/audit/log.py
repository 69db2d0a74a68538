"""Writes the audit log: one ``os.write`` per record, from the event loop.

A record costs microseconds, because it goes to the page cache (if the disk falls seconds behind, the kernel makes
writers wait); once a second a thread syncs the file to disk and then writes ``FILE.head``. Only one process may write a
file (``FILE.lock``). Rotated files are ``FILE.000001`` and so on, and a record that a crash left half-written is moved
to ``FILE.cut`` at the next start.

No problem with the file stops the service. Records that cannot be written are counted, and the next successful one
contains their number (``lost``). Changes made to the file by other processes are recorded too (``disturbed``).
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime.audit.chain import ZERO, AuditKeys, BrokenChain, open_head, seal, seal_head
from runtime.audit.files import cut_partial_record, last_record, open_log, predecessors
from runtime.errors import SettingsError
from runtime.storage.files import MODE, replace_durably

_log = logging.getLogger("warmstart.audit")

_SYNC_SECONDS = 1.0
_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


class AuditLog:
    """An audit log, opened by ``open``. All methods except ``close`` must run on the event loop's thread.

    Args:
        path: the file.
        keys: the keys derived from AUDIT_KEY.
        max_bytes: the size in bytes at which the file is rotated.
        on_error: called for each record that could not be written, and for each failed sync to disk.
        clock: wall clock time in seconds.
    """

    def __init__(
        self,
        path: Path,
        keys: AuditKeys,
        max_bytes: int,
        on_error: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._keys = keys
        self._max_bytes = max_bytes
        self._on_error = on_error
        self._clock = clock
        self._fd = self._lock = -1
        self._inode = self._size = 0
        self._limit = max_bytes  # size at which the file is rotated next
        self._sequence, self._mac, self._lost = 0, ZERO, 0
        self._unwritable = self._unsynced = self._file_missing = False
        self._second, self._stamp = -1, ""
        self._failures_logged = set[str]()  # the failing actions that were logged already
        self._synced = 0  # sequence number in the head
        self._retired: list[int] = []  # descriptors of rotated files to sync and close
        self._syncing = threading.Lock()

    @property
    def failing(self) -> bool:
        """Whether the last write or sync failed, or the file could not be found and reopened."""
        return self._unwritable or self._unsynced or self._file_missing

    def open(self) -> None:
        """Lock and open the file, continue its chain, and record the start.

        Raises:
            SettingsError: another process writes the file, the file cannot be opened, or it was not written with this
                AUDIT_KEY; the message names AUDIT_LOG.
        """
        try:
            self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._open_file()
            self._resume()
        except BlockingIOError:
            self._release()
            raise SettingsError(
                f"AUDIT_LOG: another process writes {self._path}; each process needs its own file"
            ) from None
        except OSError as error:
            self._release()
            raise SettingsError(f"AUDIT_LOG: {error}") from None
        except SettingsError:
            self._release()
            raise

    def write(self, event: str, fields: Mapping[str, Any]) -> bool:
        """Append one record, and return whether that succeeded. Never raises an OSError.

        Args:
            event: the kind of record.
            fields: the record's fields; text in them is written as printable ASCII.
        """
        return self.append(event, f",{_encode(fields)[1:-1]}" if fields else "")

    def append(self, event: str, members: str) -> bool:
        """Append one record like ``write``, with fields that are JSON already.

        Args:
            event: the kind of record.
            members: the record's JSON members in ASCII, each after a comma: ``,"status":200,"path":"/"``.
        """
        if self._size >= self._limit:
            self._rotate()
        if self._lost:
            members += f',"lost":{self._lost}'
        if self._size == 0 or event != "request":
            members += f',"prev":"{self._mac.hex()}"'
        body = f'{{"seq":{self._sequence + 1},"time":"{self._timestamp()}","event":"{event}"{members}}}'
        line, mac = seal(self._keys.chain, self._mac, body.encode("ascii"))
        try:
            if self._unwritable:
                self._truncate_partial()  # in case that failed then
            if os.write(self._fd, line) != len(line):
                raise OSError("the record was written only in part; the disk may be full")
        except OSError as error:
            with suppress(OSError):
                self._truncate_partial()
            self._unwritable = True
            if event != "recovered":  # a ``recovered`` record is only an attempt
                self._lost += 1
                self._report_failure("write", error)
            return False
        if self._unwritable:
            _log.warning("the audit log can be written again; %d records are lost", self._lost)
            self._failures_logged.clear()
        self._sequence, self._mac = self._sequence + 1, mac
        self._size += len(line)
        self._lost, self._unwritable = 0, False
        return True

    async def keep(self) -> None:
        """Once a second, until cancelled: check the file (``look``), and sync new records to disk in a thread."""
        while True:
            await asyncio.sleep(_SYNC_SECONDS)
            self.look()
            if self._sequence > self._synced or self._retired or self._unsynced:
                await asyncio.to_thread(self._sync, *self._pending())

    def look(self) -> None:
        """Record changes made to the file by other processes, reopen it if gone, and retry after a failed write."""
        if self._unwritable:
            self.write("recovered", {})
        try:
            if what := self._outside_change():
                _log.warning("the audit log was %s by another process", what)
                self._recover_file(what)
                self.write("disturbed", {"what": what})
            self._file_missing = False
            self._failures_logged.discard("find")
        except OSError as error:
            self._file_missing = True
            self._report_failure("find", error)

    def close(self) -> None:
        """Record the end, sync to disk, and close the file. Later records are lost."""
        if self._fd >= 0:
            self.write("stop", {})
            self._sync(*self._pending())
            self._release()

    def _pending(self) -> tuple[list[int], int, int, bytes]:
        """Return the arguments for ``_sync``: rotated files, the current file, the last record's number and MAC."""
        retired, self._retired = self._retired, []
        return retired, self._fd, self._sequence, self._mac

    def _sync(self, retired: list[int], current: int, sequence: int, mac: bytes) -> None:
        """Sync all records to disk, then write the head. May run on any thread."""
        with self._syncing:
            try:
                for descriptor in (*retired, current):
                    os.fsync(descriptor)
                if sequence > self._synced:  # else ``close`` has synced more already, or nothing could be written
                    replace_durably(f"{self._path}.head", seal_head(self._keys.head, sequence, mac))
                    self._synced = sequence
                self._unsynced = False
                self._failures_logged.discard("sync")
            except OSError as error:
                self._unsynced = True
                self._report_failure("sync", error)
            finally:
                for descriptor in retired:
                    os.close(descriptor)

    def _open_file(self) -> None:
        """Open or create the file; OSError as for ``open_log``."""
        self._fd, status = open_log(self._path)
        self._inode, self._size, self._limit = status.st_ino, status.st_size, self._max_bytes

    def _resume(self) -> None:
        """Continue the chain at the end of the file or of its latest predecessor, or at the head if that is later."""
        start: dict[str, Any] = {"pid": os.getpid()}
        if cut := cut_partial_record(self._fd, self._size, f"{self._path}.cut"):
            self._size -= cut
            start["cut_bytes"] = cut
        older = [path for path in predecessors(self._path) if path.stat().st_size]
        for path in [self._path, *reversed(older)][:2]:
            try:
                if last := last_record(path, self._keys.chain):
                    self._sequence, self._mac = last
                    break
            except BrokenChain as error:
                raise SettingsError(
                    f"AUDIT_LOG: {path} was not written with this AUDIT_KEY, or was changed at its end ({error}); run "
                    "warmstart audit verify, then move the file, its .head and its rotated files to another folder"
                ) from None
        try:
            sequence, mac = open_head(self._keys.head, Path(f"{self._path}.head").read_bytes())
            # Records that the head refers to are missing: the gap stays in the chain, for ``verify`` to find.
            if sequence > self._sequence:
                start["missing"] = sequence - self._sequence
                self._sequence, self._mac = sequence, mac
        except FileNotFoundError:
            if self._sequence:
                start["head"] = "missing"
        except BrokenChain:
            start["head"] = "changed"
        if start.keys() & {"cut_bytes", "missing", "head"}:
            _log.warning(
                "the audit log has changed since the last stop: %s; run warmstart audit verify for details", start
            )
        self.write("start", start)

    def _timestamp(self) -> str:
        """Return the time in UTC by RFC 3339; the part down to seconds is formatted once a second."""
        microseconds = int(self._clock() * 1e6)
        second = microseconds // 1_000_000
        if second != self._second:
            self._second, self._stamp = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._stamp}.{microseconds % 1_000_000:06}Z"

    def _outside_change(self) -> str | None:
        """Return how another process changed the file; None if it did not."""
        try:
            status = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return "removed or renamed"
        if status.st_ino != self._inode:
            return "replaced"
        return None if status.st_size == self._size else "cut" if status.st_size < self._size else "added to"

    def _recover_file(self, what: str) -> None:
        if what in ("cut", "added to"):
            self._size = os.fstat(self._fd).st_size
            if what == "added to":  # perhaps a partial line: the next record starts on a new one
                self._size += os.write(self._fd, b"\n")
        else:
            old = self._fd
            self._open_file()
            self._retired.append(old)

    def _truncate_partial(self) -> None:
        """Truncate a partly written record."""
        if os.fstat(self._fd).st_size > self._size:
            os.ftruncate(self._fd, self._size)

    def _rotate(self) -> None:
        old = self._fd
        try:
            number = max((int(path.suffix[1:]) for path in predecessors(self._path)), default=0) + 1
            target = Path(f"{self._path}.{number:06}")
            self._path.rename(target)
            self._open_file()
        except OSError as error:  # keep writing to the current file
            self._limit = self._size + self._max_bytes // 8
            return self._report_failure("rotate", error)
        self._retired.append(old)
        self._failures_logged.discard("rotate")
        self.write("rotated", {"from": target.name})

    def _report_failure(self, what: str, error: OSError) -> None:
        self._on_error()
        if what not in self._failures_logged:
            self._failures_logged.add(what)
            _log.error("cannot %s the audit log: %s", what, error)

    def _release(self) -> None:
        for descriptor in (self._fd, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._fd = self._lock = -1
        self._size = 0
