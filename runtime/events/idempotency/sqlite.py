"""An idempotency store in an SQLite file, shared by the workers of one machine."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from runtime.events.idempotency import transitions as transitions
from runtime.events.idempotency.cancellation import begin_or_release
from runtime.events.idempotency.records import Done, InProgress, Mismatch, RecordsUnavailable, Started
from runtime.events.idempotency.transitions import WorkRecord
from runtime.storage.sqlite import SqliteFile

T = TypeVar("T")

_BUSY_SECONDS = 5.0  # SQLite grants the lock to waiting processes in no order
_FORMAT = 1
_MAX_REMOVED_AT_ONCE = 100
"""The number of expired records removed when a record is begun, so that at most half of all records are expired."""
_SCHEMA = (
    """CREATE TABLE records (
        key TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, holder TEXT NOT NULL, lapsed INTEGER NOT NULL,
        since REAL NOT NULL, until REAL NOT NULL, result BLOB, forget REAL NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX by_end ON records (forget)",
    "CREATE TABLE clock (boot TEXT NOT NULL, ahead REAL NOT NULL)",
    "INSERT INTO clock VALUES ('', 0)",
    f"PRAGMA user_version = {_FORMAT}",
)


class Moment(NamedTuple):
    """The current time by the machine's clocks.

    Args:
        boot: the id of the machine's current boot; empty where the system has none.
        seconds: the time since boot in seconds, including sleep. This clock is never set, and is the same in all
            processes. Without a boot id it is Unix time.
        wall: the Unix time in seconds, which people and time servers may set forward and back.
    """

    boot: str
    seconds: float
    wall: float


def moment() -> Moment:
    """Return the current time by this machine's clocks."""
    wall, boot = time.time(), _boot()
    return Moment(boot, time.clock_gettime(time.CLOCK_BOOTTIME) if boot else wall, wall)


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()  # proc_sys_kernel(5)
    except OSError:
        return ""


class SqliteRecords:
    """An idempotency store (``Records``) in an SQLite file. A damaged file is deleted and created anew.

    The store's clock continues across boots: within one boot it is the machine's own clock, which is never set; after a
    reboot the wall clock gives the time that has passed, if any.

    Args:
        path: the file's path. The file is created on first use, readable by its owner only.
        clock: returns the current time, see ``Moment``.
    """

    def __init__(self, path: Path, clock: Callable[[], Moment] = moment) -> None:
        self._file = SqliteFile(path, _SCHEMA, _FORMAT, _BUSY_SECONDS)
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "warmstart-records")

    async def begin(
        self, key: str, fingerprint: str, holder: str, seconds: float
    ) -> Started | Done | InProgress | Mismatch:
        """Lease a record if no other worker has the lease (``Records.begin``)."""

        def work(old: WorkRecord | None, now: float) -> tuple[WorkRecord, Started | Done | InProgress | Mismatch]:
            return transitions.begin(old, fingerprint, holder, seconds, now)

        return await begin_or_release(self._transact(key, work, remove_expired=True), lambda: self.release(key, holder))

    async def renew(self, key: str, holder: str, seconds: float) -> bool:
        """Extend the lease, and return whether it still was the holder's (``Records.renew``)."""
        return await self._transact(key, lambda old, now: transitions.renew(old, holder, seconds, now))

    async def complete(self, key: str, holder: str, result: bytes, seconds: float) -> bool:
        """Store the result, and return whether the record still was the holder's (``Records.complete``)."""
        return await self._transact(key, lambda old, now: transitions.complete(old, holder, result, seconds, now))

    async def release(self, key: str, holder: str) -> None:
        """Release the lease without a result (``Records.release``)."""
        await self._transact(key, lambda old, now: transitions.release(old, holder, now))

    async def close(self) -> None:
        """Stop the thread and close the file."""
        await asyncio.to_thread(self._thread.shutdown)
        self._file.close()

    async def _transact(
        self,
        key: str,
        work: Callable[[WorkRecord | None, float], tuple[WorkRecord | None, T]],
        *,
        remove_expired: bool = False,
    ) -> T:
        """Run one transaction that replaces the key's record by the one that ``work`` returns (None deletes it)."""

        def transact(database: sqlite3.Connection) -> T:
            database.execute("BEGIN IMMEDIATE")
            now = self._now(database)
            if remove_expired:
                database.execute(
                    "DELETE FROM records WHERE key IN (SELECT key FROM records WHERE forget <= ? LIMIT ?)",
                    (now, _MAX_REMOVED_AT_ONCE),
                )
            row = database.execute(
                "SELECT fingerprint, holder, lapsed, since, until, result FROM records WHERE key = ? AND forget > ?",
                (key, now),
            ).fetchone()
            old = None if row is None else WorkRecord(*row)
            new, answer = work(old, now)
            if new is None:
                database.execute("DELETE FROM records WHERE key = ?", (key,))
            elif new is not old:
                values = new.fingerprint, new.holder, new.lapsed, new.since, new.until, new.result, new.forget
                database.execute("REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (key, *values))
            database.execute("COMMIT")
            return answer

        def run() -> T:
            try:
                return self._file.run(transact)
            except (sqlite3.Error, OSError) as error:
                raise RecordsUnavailable(f"{self._file.path.name}: {error}") from error

        # SQLite serializes writers anyway, so one thread suffices, and waiting for the disk blocks no shared thread.
        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _now(self, database: sqlite3.Connection) -> float:
        boot, seconds, wall = self._clock()
        stored_boot, ahead = database.execute("SELECT boot, ahead FROM clock").fetchone()
        if boot != stored_boot:
            last = database.execute("SELECT max(since) FROM records").fetchone()[0]
            ahead = (wall if last is None else max(wall, last)) - seconds
            database.execute("UPDATE clock SET boot = ?, ahead = ?", (boot, ahead))
        return float(seconds + ahead)
