"""An SQLite file that the processes of one machine share. Unless it is durable, a damaged file is created anew."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

_log = logging.getLogger("warmstart.sqlite")
T = TypeVar("T")

# SQLite's error codes for a file that is damaged or not a database with the expected schema.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA}

_WAL_PAUSE_SECONDS = 0.005


class SqliteFile:
    """A shared SQLite file in WAL mode, opened on first use. Thread-safe.

    A file that is damaged is rebuilt, unless it holds what cannot be made again (``durable``).

    Args:
        path: the file's path; the file is created on first use and readable by its owner only.
        schema: the statements that create its tables; the last one sets ``user_version`` to ``number``.
        number: the format version; a file with another one counts as damaged.
        busy_seconds: how long to wait for other writers.
        durable: keep a damaged file, and fail; and write each transaction to the disk before it counts, so that a power
            cut loses none.
    """

    def __init__(
        self, path: Path, schema: Sequence[str], number: int, busy_seconds: float, *, durable: bool = False
    ) -> None:
        self.path = path
        self.damaged = 0
        """How often the file was found damaged."""
        self.database: sqlite3.Connection | None = None
        self._schema = schema
        self._number = number
        self._busy_seconds = busy_seconds
        self._durable = durable
        self._lock = threading.Lock()
        self._inode = 0

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run work on the connection, and once more on a new file if the file was rebuilt; callable from any thread.

        After a failure the connection is closed, which rolls back all uncommitted changes.

        Args:
            work: takes the connection and returns a result.

        Raises:
            sqlite3.Error: the file cannot be read or written now.
            OSError: the file cannot be created.
        """
        with self._lock:
            try:
                try:
                    return work(self._connect())
                except sqlite3.DatabaseError as error:
                    if self._durable or getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
                        raise
                    self.rebuild(error)
                    return work(self._connect())
            except (sqlite3.Error, OSError):
                self._disconnect()
                raise

    def rebuild(self, error: sqlite3.Error) -> None:
        """Delete the file so that it is created anew, unless another process has done so already."""
        self._disconnect()
        if self._is_current():
            _log.warning("%s is damaged and is created again: %s", self.path.name, error)
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.damaged += 1

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._disconnect()

    def _is_current(self) -> bool:
        try:
            return self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def _connect(self) -> sqlite3.Connection:
        if self.database is not None and not self._is_current():
            self._disconnect()  # another process has replaced or deleted the file
        if self.database is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            self._inode = os.fstat(file).st_ino
            os.close(file)
            self.database = sqlite3.connect(
                self.path, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False
            )
            self._prepare(self.database)
        return self.database

    def _prepare(self, database: sqlite3.Connection) -> None:
        self._use_wal(database)
        # Without FULL a power cut may lose the last writes, but never damages the file.
        database.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version == self._number:
            return
        if self._durable and version:
            raise sqlite3.DatabaseError(f"its format is {version}, and this version reads {self._number}")
        database.execute("BEGIN IMMEDIATE")
        if database.execute("PRAGMA user_version").fetchone()[0] != self._number:  # no other process did it meanwhile
            for statement in self._schema:
                database.execute(statement)
        database.execute("COMMIT")

    def _use_wal(self, database: sqlite3.Connection) -> None:
        """Put the file in WAL mode. SQLite does not wait by itself while others that open a new file do the same."""
        end = time.monotonic() + self._busy_seconds
        while True:
            try:
                database.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= end:
                    raise
                time.sleep(_WAL_PAUSE_SECONDS)

    def _disconnect(self) -> None:
        if self.database is not None:
            self.database.close()
            self.database = None
