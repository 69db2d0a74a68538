"""The SQLite file of files, batches, rows and results, with one thread that runs its transactions."""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from runtime.backoff import full_jitter
from runtime.errors import StorageFull, StorageUnavailable
from runtime.storage.sqlite import SqliteFile

T = TypeVar("T")

_log = logging.getLogger("warmstart.batches")

_FIRST_PAUSE = 0.5  # seconds, at most, behind the first failed attempt
_BUSY_SECONDS = 10.0
_FORMAT = 1
_FULL = {errno.ENOSPC, errno.EDQUOT}

_SCHEMA = (
    """CREATE TABLE files (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, name TEXT NOT NULL,
        purpose TEXT NOT NULL, size INTEGER NOT NULL, created INTEGER NOT NULL, expires INTEGER
    )""",
    "CREATE INDEX files_of ON files (owner, number)",
    "CREATE INDEX files_end ON files (expires)",
    """CREATE TABLE batches (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
        input_file TEXT NOT NULL, endpoint TEXT NOT NULL, window TEXT NOT NULL, created INTEGER NOT NULL,
        expires INTEGER NOT NULL,
        metadata TEXT, output_seconds INTEGER, state TEXT NOT NULL, in_progress INTEGER, finalizing INTEGER,
        cancelling INTEGER, ended INTEGER, total INTEGER NOT NULL DEFAULT 0, completed INTEGER NOT NULL DEFAULT 0,
        failed INTEGER NOT NULL DEFAULT 0, errors TEXT NOT NULL DEFAULT '[]', output_file TEXT, error_file TEXT,
        input_tokens INTEGER NOT NULL DEFAULT 0, cached_tokens INTEGER NOT NULL DEFAULT 0,
        output_tokens INTEGER NOT NULL DEFAULT 0
    )""",
    "CREATE INDEX batches_of ON batches (owner, number)",
    "CREATE INDEX batches_open ON batches (number) WHERE ended IS NULL",
    # A row is a line of the input file, which has its text; starts counts how often it was taken to be run.
    """CREATE TABLE rows (
        batch INTEGER NOT NULL, line INTEGER NOT NULL, custom_id TEXT NOT NULL, offset INTEGER NOT NULL,
        length INTEGER NOT NULL, starts INTEGER NOT NULL DEFAULT 0, done INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (batch, line)
    ) WITHOUT ROWID""",
    "CREATE UNIQUE INDEX rows_by_id ON rows (batch, custom_id)",
    "CREATE INDEX rows_open ON rows (batch, line) WHERE done = 0",
    """CREATE TABLE results (
        batch INTEGER NOT NULL, line INTEGER NOT NULL, answered INTEGER NOT NULL, text BLOB NOT NULL,
        PRIMARY KEY (batch, line)
    )""",
    f"PRAGMA user_version = {_FORMAT}",
)


class BatchDatabase:
    """The database of one folder. Its processes may open it any number of times.

    Args:
        folder: the folder; it is created on first use.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = SqliteFile(folder / "batches.sqlite", _SCHEMA, _FORMAT, _BUSY_SECONDS, durable=True)
        self._thread = ThreadPoolExecutor(1, "warmstart-batches")

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run work that only reads, and return its result. Blocks; callable from any thread.

        Raises:
            StorageFull: the disk is full.
            StorageUnavailable: the database cannot be used.
        """
        with storage_errors():
            return self._file.run(work)

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run work in one transaction; errors as for ``read``. If it raises, nothing is changed."""

        def transact(database: sqlite3.Connection) -> T:
            database.execute("BEGIN IMMEDIATE")
            try:
                result = work(database)
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite itself has rolled back after some errors
                    database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
            return result

        return self.read(transact)

    async def on_thread(self, call: Callable[[], T]) -> T:
        """Return the result of a call on this object's thread, which makes one call at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def close(self) -> None:
        """Wait for the calls in progress and close the database."""
        self._thread.shutdown()
        self._file.close()


async def retried(
    attempt: Callable[[], Awaitable[T]], draw: Callable[[], float], max_seconds: float, problem: str, solved: str = ""
) -> T:
    """Return the result of an attempt, which is repeated while the disk is full or the database cannot be used.

    Args:
        attempt: makes an attempt.
        draw: returns a uniformly distributed random number from 0 to 1.
        max_seconds: the longest pause between two attempts.
        problem: what is logged once when an attempt fails.
        solved: what is logged when one succeeds after that; "" for nothing.
    """
    failures = 0
    while True:
        try:
            result = await attempt()
        except (StorageFull, StorageUnavailable) as error:
            failures += 1
            if failures == 1:
                _log.warning("%s: %s", problem, error.__cause__ or error)
            await asyncio.sleep(full_jitter(failures, _FIRST_PAUSE, max_seconds, draw))
            continue
        if failures and solved:
            _log.warning(solved)
        return result


@contextmanager
def storage_errors() -> Iterator[None]:
    """Raise the errors of SQLite and of the disk as errors of the service.

    Raises:
        StorageFull: the disk is full.
        StorageUnavailable: any other of these errors.
    """
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            raise StorageFull("the disk is full", retry_after=60) from error
        raise StorageUnavailable("the stored files and batches cannot be used now; try again") from error
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull("the disk is full", retry_after=60) from error
        raise StorageUnavailable("the stored files and batches cannot be used now; try again") from error
