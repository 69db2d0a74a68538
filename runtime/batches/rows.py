"""The rows of batches in the database: loading them, taking them to be run, recording their results, writing the files.

A row's result counts from the transaction that records it. Each row has at most one result, whatever happens to the
process, so that its line is once in one of the two files.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from runtime.batch_types import BatchState, InputError
from runtime.batches.batches import change_state, errors_text
from runtime.batches.database import BatchDatabase, storage_errors
from runtime.batches.input_file import InputRow
from runtime.batches.output_file import unfinished_line
from runtime.types import TokenUsage

MAX_ERRORS = 100
"""Errors of an input file that are reported; reading ends behind the last of them."""

_AT_ONCE = 500  # rows of one transaction


@dataclass(frozen=True, slots=True)
class TakenRow:
    """A row that is to be run.

    Args:
        line: its line, from 1.
        custom_id: its own id.
        offset: its place in the input file, in bytes.
        length: its bytes.
        starts: how often it began to run and neither got a result nor was stopped: the process died meanwhile.
    """

    line: int
    custom_id: str
    offset: int
    length: int
    starts: int


@dataclass(frozen=True, slots=True)
class RowResult:
    """A row's result.

    Args:
        batch: the batch's number.
        line: the row's line.
        answered: whether it was answered; otherwise the text is an error's.
        text: its line of the output or error file.
        usage: the tokens that it used.
    """

    batch: int
    line: int
    answered: bool
    text: bytes
    usage: TokenUsage


def load_rows(
    database: BatchDatabase, number: int, entries: Iterable[InputRow | InputError], now: int
) -> Sequence[InputError]:
    """Store the rows of an input file and start the batch, or end it with the file's errors. Blocks.

    What an interrupted call has stored is removed first.

    Args:
        database: the database.
        number: the batch's number.
        entries: the file's rows and errors.
        now: the Unix time in seconds.

    Returns:
        The errors. The batch keeps its state if it was cancelled meanwhile.

    Raises:
        StorageFull: the disk is full.
        StorageUnavailable: the database cannot be written.
    """
    remove_rows(database, number)
    errors: list[InputError] = []
    total, rest = 0, iter(entries)
    while len(errors) < MAX_ERRORS and (part := list(islice(rest, _AT_ONCE))):
        errors += [entry for entry in part if isinstance(entry, InputError)]
        rows = [entry for entry in part if isinstance(entry, InputRow)]
        total += len(rows)
        errors += database.write(lambda db, rows=rows: _insert(db, number, rows))  # type: ignore[misc]
    if not total and not errors:
        errors.append(InputError("empty_file", "the file has no rows"))
    errors = sorted(errors, key=lambda error: error.line or 0)[:MAX_ERRORS]
    state: BatchState = "failed" if errors else "in_progress"

    def end(db: sqlite3.Connection) -> bool:
        db.execute("UPDATE batches SET total = ? WHERE number = ?", (total, number))
        return change_state(db, number, state, now, errors=errors_text(errors))

    if database.write(end) and errors:
        remove_rows(database, number)
    return errors


def _insert(database: sqlite3.Connection, number: int, rows: list[InputRow]) -> list[InputError]:
    errors = []
    for row in rows:
        found = database.execute(
            "INSERT OR IGNORE INTO rows (batch, line, custom_id, offset, length) VALUES (?, ?, ?, ?, ?)",
            (number, row.line, row.custom_id, row.offset, row.length),
        )
        if not found.rowcount:
            errors.append(
                InputError(
                    "duplicate_custom_id", "custom_id: an earlier row has the same one", row.line, param="custom_id"
                )
            )
    return errors


def take_rows(database: sqlite3.Connection, number: int, after: int, limit: int) -> list[TakenRow]:
    """Return rows without a result.

    Args:
        database: the database.
        number: the batch's number.
        after: only rows behind this line.
        limit: the largest number of rows.
    """
    found = database.execute(
        "SELECT line, custom_id, offset, length, starts FROM rows "
        "WHERE batch = ? AND line > ? AND done = 0 ORDER BY line LIMIT ?",
        (number, after, limit),
    ).fetchall()
    return [TakenRow(*row) for row in found]


def count_start(database: sqlite3.Connection, number: int, line: int, change: int) -> None:
    """Count, inside a transaction, that a row begins to run (1), or that it was stopped and is to run again (-1)."""
    database.execute("UPDATE rows SET starts = starts + ? WHERE batch = ? AND line = ?", (change, number, line))


def record_result(database: sqlite3.Connection, result: RowResult) -> None:
    """Record a result inside a transaction; a second result of a row changes nothing."""
    found = database.execute(
        "INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?)", (result.batch, result.line, result.answered, result.text)
    )
    if not found.rowcount:
        return
    database.execute("UPDATE rows SET done = 1 WHERE batch = ? AND line = ?", (result.batch, result.line))
    usage = result.usage
    database.execute(
        "UPDATE batches SET completed = completed + ?, failed = failed + ?, input_tokens = input_tokens + ?, "
        "cached_tokens = cached_tokens + ?, output_tokens = output_tokens + ? WHERE number = ?",
        (
            *(result.answered, not result.answered, usage.prompt_tokens, usage.cached_tokens),
            *(usage.completion_tokens, result.batch),
        ),
    )


def remove_rows(database: BatchDatabase, number: int) -> None:
    """Delete the rows and results of a batch in short transactions. Blocks."""
    for table in ("rows", "results"):
        query = (
            f"DELETE FROM {table} WHERE batch = ? AND line IN "  # noqa: S608 - names of ours
            f"(SELECT line FROM {table} WHERE batch = ? LIMIT ?)"
        )

        def work(db: sqlite3.Connection, query: str = query) -> int:
            return db.execute(query, (number, number, _AT_ONCE)).rowcount

        while database.write(work):
            pass


def remove_orphans(database: BatchDatabase) -> None:
    """Delete the rows and results of batches that have ended or are gone, which a crash has left. Blocks."""

    def work(db: sqlite3.Connection) -> list[int]:
        query = (
            "SELECT DISTINCT batch FROM rows UNION SELECT DISTINCT batch FROM results "
            "EXCEPT SELECT number FROM batches WHERE ended IS NULL"
        )
        return [number for (number,) in db.execute(query)]

    for number in database.read(work):
        remove_rows(database, number)


def write_lines(
    database: BatchDatabase, number: int, answers: Path, errors: Path, unfinished: tuple[str, str] | None
) -> tuple[int, int]:
    """Write the lines of a batch's two files in the order of the input file. Blocks.

    Args:
        database: the database.
        number: the batch's number.
        answers: the file for the lines of rows that were answered.
        errors: the file for the other lines.
        unfinished: code and message of the rows without a result.

    Returns:
        The sizes of both files in bytes.

    Raises:
        StorageFull: the disk is full.
        StorageUnavailable: the files cannot be written.
    """
    line = 0
    with storage_errors(), answers.open("wb") as output, errors.open("wb") as error_output:
        while part := database.read(lambda db, after=line: _results_after(db, number, after)):  # type: ignore[misc]
            for line, custom_id, answered, text in part:
                if text is not None:
                    (output if answered else error_output).write(text)
                elif unfinished is not None:
                    error_output.write(unfinished_line(f"batch_req_{number}_{line}", custom_id, *unfinished))
        return output.tell(), error_output.tell()


def _results_after(database: sqlite3.Connection, number: int, after: int) -> list[tuple[int, str, int, bytes]]:
    return database.execute(
        "SELECT rows.line, custom_id, answered, text FROM rows LEFT JOIN results "
        "ON results.batch = rows.batch AND results.line = rows.line "
        "WHERE rows.batch = ? AND rows.line > ? ORDER BY rows.line LIMIT 200",
        (number, after),
    ).fetchall()
