"""Cached responses in an SQLite file: they survive restarts, and the processes of one machine share them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from runtime.response_cache.store import OVERHEAD, Size, Store, StoreFailed, cost
from runtime.storage.sqlite import SqliteFile

T = TypeVar("T")

_BUSY_SECONDS = 0.5
_FORMAT = 1
# Triggers update the totals, so that a crash cannot make them disagree with the rows.
_SCHEMA = (
    """CREATE TABLE answers (
        key TEXT PRIMARY KEY, model TEXT NOT NULL, value BLOB NOT NULL, created REAL NOT NULL, used INTEGER NOT NULL
    )""",
    "CREATE INDEX by_age ON answers (created)",
    "CREATE INDEX by_use ON answers (used)",
    "CREATE TABLE totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL)",
    "INSERT INTO totals VALUES (0, 0)",
    f"""CREATE TRIGGER added AFTER INSERT ON answers BEGIN
        UPDATE totals SET entries = entries + 1, bytes = bytes + length(new.value) + {OVERHEAD};
    END""",  # noqa: S608 - a number of ours
    f"""CREATE TRIGGER dropped AFTER DELETE ON answers BEGIN
        UPDATE totals SET entries = entries - 1, bytes = bytes - length(old.value) - {OVERHEAD};
    END""",  # noqa: S608
    f"PRAGMA user_version = {_FORMAT}",
)


class SqliteStore(Store):
    """A ``Store`` in an SQLite file. A damaged file is deleted and created anew.

    Args:
        path: the file's path; the file is created on first use and readable by its owner only.
        limit_bytes: as for ``Store``; the file itself is larger.
        ttl_seconds: as for ``Store``, and so is ``clock``.
    """

    name = "sqlite"
    blocking = True

    def __init__(self, path: Path, limit_bytes: int, ttl_seconds: float, clock: Callable[[], float]) -> None:
        super().__init__(limit_bytes, ttl_seconds, clock)
        self._file = SqliteFile(path, _SCHEMA, _FORMAT, _BUSY_SECONDS)

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values that have not expired, and mark them as most recently used."""

        def work(database: sqlite3.Connection) -> list[bytes | None]:
            rows = database.execute(
                "SELECT key, value, used FROM answers WHERE key IN (SELECT value FROM json_each(?)) AND created > ?",
                (json.dumps(list(keys)), self._clock() - self._ttl),
            ).fetchall()
            found = {key: (bytes(value), used) for key, value, used in rows}
            present = [key for key in keys if key in found]
            newest = database.execute("SELECT used FROM answers ORDER BY used DESC LIMIT ?", (len(present),)).fetchall()
            if [(found[key][1],) for key in reversed(present)] != newest:  # else nothing needs to be written
                database.execute("BEGIN IMMEDIATE")
                database.executemany(
                    "UPDATE answers SET used = (SELECT max(used) FROM answers) + 1 WHERE key = ?",
                    [(key,) for key in present],
                )
                database.execute("COMMIT")
            return [found[key][0] if key in found else None for key in keys]

        return self._do(work)

    def put_many(self, model: str, values: Mapping[str, bytes]) -> None:
        """Store values, and evict the least recently used ones that have no room."""
        fitting = {key: value for key, value in values.items() if cost(value) <= self._limit}
        if not fitting:
            return

        def work(database: sqlite3.Connection) -> tuple[int, int]:
            database.execute("BEGIN IMMEDIATE")
            expired, evicted = self._expire(database), 0
            for key, value in fitting.items():
                database.execute("DELETE FROM answers WHERE key = ?", (key,))
                database.execute(
                    "INSERT INTO answers SELECT ?, ?, ?, ?, coalesce(max(used), 0) + 1 FROM answers",
                    (key, model, value, self._clock()),
                )
                while database.execute("SELECT bytes > ? FROM totals", (self._limit,)).fetchone()[0]:
                    database.execute("DELETE FROM answers WHERE key = (SELECT key FROM answers ORDER BY used LIMIT 1)")
                    evicted += 1
            database.execute("COMMIT")
            return expired, evicted

        expired, evicted = self._do(work)
        self._count(expired=expired, evicted=evicted)

    def remove(self, *, model: str | None = None, prefix: str = "") -> int:
        """Remove the values that match, and return how many there were."""
        # "g" sorts after every hexadecimal digit.
        condition = "key >= ? AND key < ?" + ("" if model is None else " AND model = ?")
        values = (prefix, prefix + "g") + (() if model is None else (model,))
        statement = f"DELETE FROM answers WHERE {condition}"  # noqa: S608 - made of the two lines above
        return self._do(lambda database: database.execute(statement, values).rowcount)

    def size(self) -> Size:
        """Return the number of entries and their bytes."""

        def work(database: sqlite3.Connection) -> tuple[int, Size]:
            expired = self._expire(database)
            return expired, Size(*database.execute("SELECT entries, bytes FROM totals").fetchone())

        expired, size = self._do(work)
        self._count(expired=expired)
        return size

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _expire(self, database: sqlite3.Connection) -> int:
        oldest = (self._clock() - self._ttl,)
        if database.execute("SELECT 1 FROM answers WHERE created <= ? LIMIT 1", oldest).fetchone() is None:
            return 0  # a DELETE would wait for other writers even if it matches no row
        return database.execute("DELETE FROM answers WHERE created <= ?", oldest).rowcount

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._file.run(work)
        except (sqlite3.Error, OSError) as error:
            raise StoreFailed(f"{self._file.path.name}: {error}") from error
        finally:
            self.counters.damaged = self._file.damaged
