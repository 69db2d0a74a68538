"""Commits small changes in groups: while one transaction is written, the changes for the next one are collected."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable

from runtime.batches.database import BatchDatabase, retried

_MAX_PAUSE = 30.0  # seconds before a failed transaction is written again
_AT_ONCE = 256  # changes of one transaction

Change = Callable[[sqlite3.Connection], None]
"""Makes a small change inside a transaction."""


class GroupCommit:
    """Commits changes in the order in which they come. While the disk is full or fails, it tries again.

    Args:
        database: the database.
        draw: returns a uniformly distributed random number from 0 to 1.
    """

    def __init__(self, database: BatchDatabase, draw: Callable[[], float] = random.random) -> None:
        self._database = database
        self._draw = draw
        self._waiting: list[tuple[Change, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def commit(self, change: Change) -> None:
        """Return once a change is committed. It is committed even if the caller is cancelled meanwhile."""
        future = self.add(change)
        await future

    def add(self, change: Change) -> asyncio.Future[None]:
        """Add a change, and return a future that is done once it is committed."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((change, future))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        return future

    async def close(self, seconds: float) -> None:
        """Commit what was added so far, if that succeeds in time; the rest is lost, as if the process had died.

        Args:
            seconds: the time limit.
        """
        if self._writing is None:
            return
        await asyncio.wait([self._writing], timeout=seconds)
        self._writing.cancel()

    async def _write(self) -> None:
        while self._waiting:
            part = self._waiting[:_AT_ONCE]

            def work(database: sqlite3.Connection, part: list[tuple[Change, asyncio.Future[None]]] = part) -> None:
                for change, _ in part:
                    change(database)

            await retried(
                lambda work=work: self._database.on_thread(lambda: self._database.write(work)),  # type: ignore[misc]
                self._draw,
                _MAX_PAUSE,
                "results of batches cannot be stored, trying again",
                "results of batches are stored again",
            )
            del self._waiting[: len(part)]
            for _, future in part:
                if not future.done():  # its caller was cancelled
                    future.set_result(None)
