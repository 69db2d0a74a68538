"""Records in an SQLite file, which workers of one machine share."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from runtime.events.idempotency import transitions as record
from runtime.events.idempotency.cancellation import begin_or_release
from runtime.events.idempotency.records import Done, InProgress, Mismatch, RecordsUnavailable, Started
from runtime.events.idempotency.transitions import WorkRecord
from runtime.storage.sqlite import SqliteFile

T = TypeVar("T")

_BUSY_SECONDS = 5.0  # SQLite lets those that wait go in no order
_FORMAT = 1
_SWEPT = 100
"""Forgotten records removed when one is begun, so that there are never more than twice as many as are known."""
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
    """Now.

    Args:
        boot: names the machine's boot; empty where the system does not tell.
        seconds: since then, also while the machine sleeps. Nothing sets this clock, and all processes see the same.
            Where the system does not tell, it is Unix time.
        wall: Unix time in seconds; people and time servers set it, forth and back.
    """

    boot: str
    seconds: float
    wall: float


def moment() -> Moment:
    """Now, by this machine's clocks."""
    wall, boot = time.time(), _boot()
    return Moment(boot, time.clock_gettime(time.CLOCK_BOOTTIME) if boot else wall, wall)


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()  # proc_sys_kernel(5)
    except OSError:
        return ""


class SqliteRecords:
    """See ``Records``. A file that is damaged is removed and begun anew.

    Its clock goes on from boot to boot: within one it is the machine's own, which nothing sets; after another the wall
    clock says how much time has passed, if any.

    Args:
        path: of the file; it is made on first use, for its owner's eyes only.
        clock: see ``Moment``.
    """

    def __init__(self, path: Path, clock: Callable[[], Moment] = moment) -> None:
        self._file = SqliteFile(path, _SCHEMA, _FORMAT, _BUSY_SECONDS)
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "warmstart-records")

    async def begin(
        self, key: str, fingerprint: str, holder: str, seconds: float
    ) -> Started | Done | InProgress | Mismatch:
        """See ``Records``."""

        def work(found: WorkRecord | None, now: float) -> tuple[WorkRecord, Started | Done | InProgress | Mismatch]:
            return record.begin(found, fingerprint, holder, seconds, now)

        return await begin_or_release(self._do(key, work, sweep=True), lambda: self.release(key, holder))

    async def renew(self, key: str, holder: str, seconds: float) -> bool:
        """See ``Records``."""
        return await self._do(key, lambda found, now: record.renew(found, holder, seconds, now))

    async def complete(self, key: str, holder: str, result: bytes, seconds: float) -> bool:
        """See ``Records``."""
        return await self._do(key, lambda found, now: record.complete(found, holder, result, seconds, now))

    async def release(self, key: str, holder: str) -> None:
        """See ``Records``."""
        await self._do(key, lambda found, now: record.release(found, holder, now))

    async def close(self) -> None:
        """See ``Records``."""
        await asyncio.to_thread(self._thread.shutdown)
        self._file.close()

    async def _do(
        self, key: str, work: Callable[[WorkRecord | None, float], tuple[WorkRecord | None, T]], *, sweep: bool = False
    ) -> T:
        """One transaction: what is known of a key becomes what ``work`` makes of it."""

        def transact(database: sqlite3.Connection) -> T:
            database.execute("BEGIN IMMEDIATE")
            now = self._now(database)
            if sweep:
                database.execute(
                    "DELETE FROM records WHERE key IN (SELECT key FROM records WHERE forget <= ? LIMIT ?)",
                    (now, _SWEPT),
                )
            row = database.execute(
                "SELECT fingerprint, holder, lapsed, since, until, result FROM records WHERE key = ? AND forget > ?",
                (key, now),
            ).fetchone()
            found = None if row is None else WorkRecord(*row)
            left, answer = work(found, now)
            if left is None:
                database.execute("DELETE FROM records WHERE key = ?", (key,))
            elif left is not found:
                values = left.fingerprint, left.holder, left.lapsed, left.since, left.until, left.result, left.forget
                database.execute("REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (key, *values))
            database.execute("COMMIT")
            return answer

        def run() -> T:
            try:
                return self._file.do(transact)
            except (sqlite3.Error, OSError) as error:
                raise RecordsUnavailable(f"{self._file.path.name}: {error}") from error

        # One after the other anyway, so one thread will do, and what waits for the disk starves nothing else.
        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _now(self, database: sqlite3.Connection) -> float:
        boot, seconds, wall = self._clock()
        known, ahead = database.execute("SELECT boot, ahead FROM clock").fetchone()
        if boot != known:
            last = database.execute("SELECT max(since) FROM records").fetchone()[0]
            ahead = (wall if last is None else max(wall, last)) - seconds
            database.execute("UPDATE clock SET boot = ?, ahead = ?", (boot, ahead))
        return float(seconds + ahead)
