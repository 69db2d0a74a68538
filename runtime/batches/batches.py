"""The records of batches: creating, reading, listing and cancelling them, and changing their state."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from runtime.batch_types import BatchState, BatchTokens, InputError, PageRequest, StoredBatch
from runtime.batches.database import BatchDatabase
from runtime.batches.files import FileStore
from runtime.batches.pages import page_of
from runtime.batches.states import ENDED, may_become
from runtime.errors import InvalidRequest, NotFound, TooManyRequests

MAX_OPEN = 100
"""Maximum number of batches of one caller that have not ended."""

_COLUMNS = (
    "number, id, owner, input_file, endpoint, window, created, expires, metadata, output_seconds, state, in_progress, "
    "finalizing, cancelling, ended, total, completed, failed, errors, output_file, error_file, input_tokens, "
    "cached_tokens, output_tokens"
)
_TIMES: dict[BatchState, str] = {
    "in_progress": "in_progress",
    "finalizing": "finalizing",
    "cancelling": "cancelling",
    **dict.fromkeys(ENDED, "ended"),
}
"""The column of the time at which a batch got a state."""


class BatchStore:
    """Batches of all callers. Each caller sees its own only.

    Args:
        database: the database.
        files: the files in the same database.
        clock: returns Unix time in seconds.
    """

    def __init__(self, database: BatchDatabase, files: FileStore, clock: Callable[[], float] = time.time) -> None:
        self.on_change: Callable[[], None] = lambda: None
        """Called after a batch was created or is to be cancelled, in the process that did it."""
        self._database = database
        self._files = files
        self._clock = clock

    async def create(self, batch: StoredBatch) -> StoredBatch:
        """Store a new batch.

        Args:
            batch: the batch, as it is at first.

        Raises:
            NotFound: its caller has no such input file.
            InvalidRequest: the input file has another purpose.
            TooManyRequests: its caller has ``MAX_OPEN`` batches that have not ended.
            StorageFull: the disk is full.
            StorageUnavailable: the database cannot be written.
        """
        created = await self._database.on_thread(lambda: self.create_now(batch))
        self.on_change()
        return created

    def create_now(self, batch: StoredBatch) -> StoredBatch:
        """Store a new batch as ``create`` does; blocks, and calls nothing."""

        def work(database: sqlite3.Connection) -> None:
            file = self._files.find_in(database, batch.owner, batch.input_file, "input_file_id")
            if file.purpose != "batch":
                raise InvalidRequest(
                    f"input_file_id: the file's purpose is {file.purpose}, and it must be batch", param="input_file_id"
                )
            query = "SELECT count(*) FROM batches WHERE owner = ? AND ended IS NULL"
            if database.execute(query, (batch.owner,)).fetchone()[0] >= MAX_OPEN:
                raise TooManyRequests(f"{MAX_OPEN} of your batches have not ended, which is the limit", retry_after=60)
            database.execute(
                "INSERT INTO batches (id, owner, input_file, endpoint, window, created, expires, metadata, "
                "output_seconds, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(batch.id, batch.owner, batch.input_file, batch.endpoint, batch.window, batch.created),
                    *(batch.expires, None if batch.metadata is None else json.dumps(batch.metadata)),
                    *(batch.output_seconds, batch.state),
                ),
            )

        self._database.write(work)
        return batch

    async def find(self, owner: str, batch_id: str) -> StoredBatch:
        """Return a batch.

        Raises:
            NotFound: the caller has no such batch.
            StorageUnavailable: the database cannot be read.
        """
        return await self._database.on_thread(
            lambda: self._database.read(lambda database: find_batch(database, owner, batch_id)[1])
        )

    async def page(self, owner: str, page: PageRequest) -> tuple[list[StoredBatch], bool]:
        """Return some of a caller's batches, and whether there are more.

        Raises:
            InvalidRequest: the page begins after a batch that does not exist.
            StorageUnavailable: the database cannot be read.
        """

        def work(database: sqlite3.Connection) -> tuple[list[StoredBatch], bool]:
            rows, more = page_of(database, "batches", _COLUMNS, {"owner": owner}, page)
            return [_batch(row) for row in rows], more

        return await self._database.on_thread(lambda: self._database.read(work))

    async def cancel(self, owner: str, batch_id: str) -> StoredBatch:
        """Request that a batch is cancelled; nothing changes for one that is cancelled or is being cancelled.

        Returns:
            The batch as it is then.

        Raises:
            NotFound: the caller has no such batch.
            InvalidRequest: the batch has ended otherwise, or is about to.
            StorageUnavailable: the database cannot be written.
        """

        def work(database: sqlite3.Connection) -> StoredBatch:
            number, batch = find_batch(database, owner, batch_id)
            if batch.state in ("cancelling", "cancelled"):
                return batch
            if not may_become(batch.state, "cancelling"):
                raise InvalidRequest(f"batch_id: a batch that is {batch.state} cannot be cancelled", param="batch_id")
            change_state(database, number, "cancelling", int(self._clock()))
            return find_batch(database, owner, batch_id)[1]

        found = await self._database.on_thread(lambda: self._database.write(work))
        self.on_change()
        return found


def open_batches(database: sqlite3.Connection) -> list[tuple[int, StoredBatch]]:
    """Return the numbers and records of the batches that have not ended, the oldest first."""
    rows = database.execute(f"SELECT {_COLUMNS} FROM batches WHERE ended IS NULL ORDER BY number")  # noqa: S608
    return [(row[0], _batch(row)) for row in rows.fetchall()]


def change_state(
    database: sqlite3.Connection, number: int, state: BatchState, now: int, **values: str | int | None
) -> bool:
    """Give a batch another state inside a transaction.

    Args:
        database: the database.
        number: the batch's number.
        state: its new state.
        now: the Unix time in seconds.
        values: further columns to set.

    Returns:
        False if the batch's state has changed meanwhile so that it may not become the new one; nothing is changed then.
    """
    row = database.execute("SELECT state FROM batches WHERE number = ?", (number,)).fetchone()
    if row is None or not may_become(row[0], state):
        return False
    columns: dict[str, Any] = {"state": state, _TIMES[state]: now, **values}
    setters = ", ".join(f"{name} = ?" for name in columns)
    database.execute(f"UPDATE batches SET {setters} WHERE number = ?", (*columns.values(), number))  # noqa: S608
    return True


def errors_text(errors: list[InputError]) -> str:
    """Return errors in the form in which they are stored."""
    return json.dumps([asdict(error) for error in errors])


def remove_ended(database: sqlite3.Connection, before: int) -> int:
    """Delete the records of batches that ended before a Unix time; return their number."""
    return database.execute("DELETE FROM batches WHERE ended < ?", (before,)).rowcount


def find_batch(database: sqlite3.Connection, owner: str, batch_id: str) -> tuple[int, StoredBatch]:
    """Return a batch's number and record inside a transaction.

    Raises:
        NotFound: the caller has no such batch.
    """
    row = database.execute(
        f"SELECT {_COLUMNS} FROM batches WHERE id = ? AND owner = ?",  # noqa: S608 - names of ours
        (batch_id, owner),
    ).fetchone()
    if row is None:
        raise NotFound("batch_id: there is no such batch", param="batch_id")
    return row[0], _batch(row)


def _batch(row: tuple[Any, ...]) -> StoredBatch:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    del values["number"]
    tokens = BatchTokens(values.pop("input_tokens"), values.pop("cached_tokens"), values.pop("output_tokens"))
    values["metadata"] = None if values["metadata"] is None else json.loads(values["metadata"])
    values["errors"] = tuple(InputError(**error) for error in json.loads(values["errors"]))
    return StoredBatch(**values, tokens=tokens)
