"""An SQLite file that processes of one machine share. One that is damaged is begun anew."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

_log = logging.getLogger("warmstart.sqlite")
T = TypeVar("T")

# What SQLite says of a file that is not a database of ours, or no longer one.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA}


class SqliteFile:
    """See the module.

    Args:
        path: of the file; it is made on first use, for its owner's eyes only.
        schema: statements that make what is in it; the last one sets ``user_version`` to ``number``.
        number: of the format; a file with another is none of ours.
        busy_seconds: to wait for others that write.
    """

    def __init__(self, path: Path, schema: Sequence[str], number: int, busy_seconds: float) -> None:
        self.path = path
        self.damaged = 0
        """Times that it was found damaged."""
        self.database: sqlite3.Connection | None = None
        self._schema = schema
        self._number = number
        self._busy_seconds = busy_seconds
        self._lock = threading.Lock()
        self._inode = 0

    def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Work on it, on a new one if it is damaged; from any thread. After a failure the connection is given up, and
        with it whatever was not committed.

        Raises:
            sqlite3.Error: it cannot be read or written now.
            OSError: it cannot be made.
        """
        with self._lock:
            try:
                try:
                    return work(self._connect())
                except sqlite3.DatabaseError as error:
                    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
                        raise
                    self.rebuild(error)
                    return work(self._connect())
            except (sqlite3.Error, OSError):
                self._disconnect()
                raise

    def rebuild(self, error: sqlite3.Error) -> None:
        """Remove the file, unless another process has begun it anew already."""
        self._disconnect()
        if self._is_there():
            _log.warning("%s is damaged and begun anew: %s", self.path.name, error)
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.damaged += 1

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._disconnect()

    def _is_there(self) -> bool:
        try:
            return self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def _connect(self) -> sqlite3.Connection:
        if self.database is not None and not self._is_there():
            self._disconnect()  # another process has begun it anew, or somebody has removed it
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
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")  # a lost power line may cost the last writes, never the file
        if database.execute("PRAGMA user_version").fetchone()[0] == self._number:
            return
        database.execute("BEGIN IMMEDIATE")
        if database.execute("PRAGMA user_version").fetchone()[0] != self._number:  # nobody else was quicker
            for statement in self._schema:
                database.execute(statement)
        database.execute("COMMIT")

    def _disconnect(self) -> None:
        if self.database is not None:
            self.database.close()
            self.database = None
