"""runtime.batches.group_commit: changes are committed in order, in groups, and again after a failure."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.batches.database import BatchDatabase
from runtime.batches.group_commit import GroupCommit
from runtime.cancellation import cancel_and_wait
from runtime.errors import StorageFull


class Failing(BatchDatabase):
    """A database whose first transactions fail."""

    failures = 0
    transactions = 0

    def write(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """Write, or fail."""
        self.transactions += 1
        if self.failures:
            self.failures -= 1
            raise StorageFull("planted")
        return super().write(work)


def _insert(name: str) -> Callable[[sqlite3.Connection], None]:
    def change(database: sqlite3.Connection) -> None:
        database.execute("INSERT INTO files VALUES (NULL, ?, '', '', '', 0, 0, 0)", (name,))

    return change


def _names(database: BatchDatabase) -> list[str]:
    return [row[0] for row in database.read(lambda db: db.execute("SELECT id FROM files ORDER BY number").fetchall())]


async def test_in_groups(tmp_path: Path) -> None:
    """Changes that come while one is written are in the next transaction together."""
    database = Failing(tmp_path)
    commits = GroupCommit(database)
    await asyncio.gather(*(commits.commit(_insert(f"{number:03}")) for number in range(100)))
    assert _names(database) == [f"{number:03}" for number in range(100)]
    assert database.transactions <= 2
    database.close()


@pytest.mark.parametrize("failures", [1, 3])
async def test_again_after_a_failure(tmp_path: Path, failures: int, caplog: pytest.LogCaptureFixture) -> None:
    """While the disk is full nothing is lost, and it is told once."""
    database = Failing(tmp_path)
    database.failures = failures
    commits = GroupCommit(database, draw=lambda: 0.0)
    await asyncio.gather(commits.commit(_insert("a")), commits.commit(_insert("b")))
    assert _names(database) == ["a", "b"]
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "results of batches cannot be stored, trying again",
        "results of batches are stored again",
    ]
    database.close()


async def test_a_caller_that_does_not_wait(tmp_path: Path) -> None:
    """A change is committed though its caller was cancelled, and at the end what is left is committed too."""
    database = Failing(tmp_path)
    commits = GroupCommit(database)
    waiting = asyncio.create_task(commits.commit(_insert("a")))
    await asyncio.sleep(0)
    await cancel_and_wait(waiting)
    commits.add(_insert("b"))
    await commits.close(10)
    assert _names(database) == ["a", "b"]
    database.close()
