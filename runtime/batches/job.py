"""Works on one batch: validates its input file, runs its rows, and writes its output files."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from runtime.batch_types import BatchState, InputError, StoredBatch, StoredFile
from runtime.batches.batches import change_state, find_batch
from runtime.batches.database import retried, storage_errors
from runtime.batches.input_file import read_row, read_rows
from runtime.batches.output_file import response_line
from runtime.batches.resources import BatchResources, RowAnswer
from runtime.batches.rows import (
    RowResult,
    TakenRow,
    count_start,
    load_rows,
    record_result,
    remove_rows,
    take_rows,
    write_lines,
)
from runtime.cancellation import cancel_and_wait
from runtime.errors import DeliveryLimit, InternalError, ServiceError
from runtime.events.outcome import Reject
from runtime.types import TokenUsage

_log = logging.getLogger("warmstart.batches")

_TAKEN = 16  # rows that are read from the database at once
# A row during which the process has died this often runs alone, so that it is known whether it is at fault; and is not
# run any more after as many deaths as the second number.
_SUSPECT, _MAX_STARTS = 2, 10
_MAX_PAUSE = 60.0  # seconds before output files that could not be written are written again

_UNFINISHED: Mapping[BatchState, tuple[str, str]] = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request was executed."),
}


@dataclass(slots=True)
class BatchJob:
    """The work on one batch, from any of its states to its end.

    Args:
        number: the batch's number.
        batch: the batch's record.
        resources: what it shares with other jobs.
    """

    number: int
    batch: StoredBatch
    resources: BatchResources
    stopping: bool = False
    """Whether no more rows are to be started."""
    _end: BatchState | None = None
    _rows: asyncio.Task[None] | None = None
    _running: set[asyncio.Task[None]] = field(default_factory=set)

    def end(self, state: BatchState) -> None:
        """End the batch now, with the rows that have results: ``cancelled`` or ``expired``."""
        if self._end is None:
            self._end = state
            if self._rows is not None:
                self._rows.cancel()

    async def run(self) -> None:
        """Work until the batch has ended, or until ``stopping`` and its running rows are done."""
        if self.batch.state == "validating" and self._end is None:
            await self._on_disk(self._load)
        if self.batch.state == "in_progress" and self._end is None:
            self._rows = asyncio.create_task(self._run_rows())
            await asyncio.wait([self._rows])  # ended by ``end``, too
            if not self._rows.cancelled() and (error := self._rows.exception()) is not None:
                raise error
            if self.stopping and self._end is None:
                return
        while self.batch.ended is None:
            await self._on_disk(self._finish)

    async def close(self) -> None:
        """Stop the rows that run; they will run again."""
        if self._rows is not None:
            await cancel_and_wait(self._rows)

    async def _on_disk(self, work: Callable[[], None]) -> None:
        """Do work on another thread, and again while the disk is full or fails."""
        await retried(
            lambda: asyncio.to_thread(work),
            self.resources.policy.draw,
            _MAX_PAUSE,
            f"{self.batch.id} has to wait for the disk",
        )

    def _load(self) -> None:
        resources, batch = self.resources, self.batch
        rows = read_rows(resources.files.input_path(batch.input_file), batch.endpoint, resources.limits)
        errors = load_rows(resources.database, self.number, rows, int(resources.clock()))
        self._refresh()
        _log.info("%s: %d rows, %d errors in the input file", batch.id, self.batch.total, len(errors))
        if errors:
            resources.metrics.ended("failed")

    async def _run_rows(self) -> None:
        line = 0
        try:
            while not self.stopping:
                rows = await self.resources.database.on_thread(partial(self._take, line))
                if not rows:
                    break
                for row, text in rows:
                    line = row.line
                    alone = self.resources.handler.in_process and row.starts >= _SUSPECT
                    await self.resources.slots.acquire(alone=alone)
                    if self.stopping:
                        self.resources.slots.release(alone=alone)
                        break
                    task = asyncio.create_task(self._run_row(row, text))
                    self._running.add(task)
                    task.add_done_callback(partial(self._on_done, alone))
            if self._running:
                await asyncio.wait(self._running)
        finally:
            await cancel_and_wait(*self._running)

    def _take(self, after: int) -> list[tuple[TakenRow, bytes]]:
        rows = self.resources.database.read(lambda database: take_rows(database, self.number, after, _TAKEN))
        with storage_errors(), self.resources.files.input_path(self.batch.input_file).open("rb") as file:
            return [(row, os.pread(file.fileno(), row.length, row.offset)) for row in rows]

    def _on_done(self, alone: bool, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self.resources.slots.release(alone=alone)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s: a row has no result", self.batch.id, exc_info=error)

    async def _run_row(self, row: TakenRow, text: bytes) -> None:
        """Run a row with retries, and record its result; a row that is stopped is to run again."""
        async with self._counted(row.line):
            result = await self._result(row, text)
        await self.resources.commits.commit(lambda database: record_result(database, result))
        self.resources.metrics.row_done(answered=result.answered)

    @asynccontextmanager
    async def _counted(self, line: int) -> AsyncIterator[None]:
        """Record that a row runs inside the block, if it runs in this process."""
        if not self.resources.handler.in_process:
            yield
            return
        commits = self.resources.commits
        started = commits.add(lambda database: count_start(database, self.number, line, 1))
        try:
            await started
            yield
        except asyncio.CancelledError:
            commits.add(lambda database: count_start(database, self.number, line, -1))
            raise

    async def _result(self, row: TakenRow, text: bytes) -> RowResult:
        request_id = f"{self.batch.id}-{row.line}"
        try:
            if self.resources.handler.in_process and row.starts >= _MAX_STARTS:
                raise DeliveryLimit(f"the service has died {row.starts} times while it ran this request")
            answer = await self._with_retries(row, text, request_id)
            status, body, usage = answer.status, answer.body, answer.usage
        except ServiceError as error:
            status, body, usage = error.status, self.resources.handler.render(self.batch, error), TokenUsage()
        line = response_line(f"batch_req_{self.number}_{row.line}", row.custom_id, status, request_id, body)
        return RowResult(self.number, row.line, status < 400, line, usage)

    async def _with_retries(self, row: TakenRow, text: bytes, request_id: str) -> RowAnswer:
        request = read_row(text, row.line, self.batch.endpoint, self.resources.limits.depth)
        if isinstance(request, InputError):  # the file or the settings have changed since it was validated
            raise InternalError(f"the row cannot be read any more: {request.message}")
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self.resources.handler.run(self.batch, request["body"], request_id)
            except ServiceError as error:
                outcome = self.resources.policy.outcome(error, attempt)
            except Exception:
                _log.exception("%s: a row failed", self.batch.id)
                outcome = self.resources.policy.outcome(InternalError("the request failed"), attempt)
            if isinstance(outcome, Reject):
                raise outcome.error
            await asyncio.sleep(outcome.delay)

    def _finish(self) -> None:
        """Write the output files and end the batch."""
        resources, number, now = self.resources, self.number, int(self.resources.clock())
        self._refresh()
        state = self._end or "completed"
        if self.batch.state == "cancelling":
            state = "cancelled"
        elif state == "completed" and self.batch.state == "in_progress":
            resources.database.write(lambda database: change_state(database, number, "finalizing", now))
            self._refresh()
        created = int(resources.clock())
        seconds = self.batch.output_seconds or resources.files.ttl_seconds
        paths = resources.files.new_output(), resources.files.new_output()
        outputs: dict[str, StoredFile] = {}
        try:
            sizes = write_lines(resources.database, number, *paths, _UNFINISHED.get(state))
            for column, name, path, size in zip(
                ("output_file", "error_file"), ("output", "error"), paths, sizes, strict=True
            ):
                if size:
                    outputs[column] = StoredFile(
                        f"file-{secrets.token_hex(12)}",
                        self.batch.owner,
                        f"{self.batch.id}_{name}.jsonl",
                        "batch_output",
                        size,
                        created,
                        created + seconds,
                    )
                    resources.files.publish_output(path, outputs[column].id)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)

        def work(database: sqlite3.Connection) -> bool:
            ids = {column: file.id for column, file in outputs.items()}
            if not change_state(database, number, state, int(resources.clock()), **ids):
                return False
            for file in outputs.values():
                resources.files.add_output(database, file)
            return True

        if resources.database.write(work):
            remove_rows(resources.database, number)
            resources.metrics.ended(state)
            _log.info("%s is %s", self.batch.id, state)
        else:  # it was cancelled meanwhile
            for file in outputs.values():
                resources.files.input_path(file.id).unlink(missing_ok=True)
        self._refresh()

    def _refresh(self) -> None:
        """Read the batch's record again."""
        batch = self.batch
        _, self.batch = self.resources.database.read(lambda database: find_batch(database, batch.owner, batch.id))
