"""Runs the batches of a folder: one process at a time does, whichever gets the folder's lock."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from contextlib import suppress

from runtime.batch_types import StoredBatch
from runtime.batches.batches import open_batches, remove_ended
from runtime.batches.job import BatchJob
from runtime.batches.resources import BatchResources
from runtime.batches.rows import remove_orphans
from runtime.batches.states import end_of
from runtime.cancellation import cancel_and_wait
from runtime.errors import StorageFull, StorageUnavailable

_log = logging.getLogger("warmstart.batches")

_POLL_SECONDS = 1.0  # other processes create and cancel batches, too
_SWEEP_SECONDS = 300.0
_END_SECONDS = 10.0  # to store the last results at shutdown


class BatchRunner:
    """Runs batches from ``start`` until ``close``.

    Args:
        resources: what the batches share.
        poll_seconds: how often it looks for changes that other processes made.
    """

    def __init__(self, resources: BatchResources, poll_seconds: float = _POLL_SECONDS) -> None:
        self._resources = resources
        self._poll_seconds = poll_seconds
        self._jobs: dict[int, tuple[BatchJob, asyncio.Task[None]]] = {}
        self._woken = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._failing = False
        self._lock: int | None = None

    def start(self) -> None:
        """Start to run batches, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Look for changes now."""
        self._woken.set()

    def stop(self) -> None:
        """Start no more rows; those that run may end."""
        self._stopping = True
        for job, _ in self._jobs.values():
            job.stopping = True

    async def close(self) -> None:
        """Stop all work. Rows that still run are stopped, and will run at the next start."""
        self.stop()
        if self._task is not None:
            await cancel_and_wait(self._task)
        for job, _ in list(self._jobs.values()):  # a job that ends meanwhile leaves the table
            await job.close()
        await cancel_and_wait(*(task for _, task in self._jobs.values()))
        await self._resources.commits.close(_END_SECONDS)
        await self._resources.handler.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _run(self) -> None:
        assert self._loop is not None
        sweep_at = self._loop.time()
        while not self._stopping:
            try:
                if await asyncio.to_thread(self._has_lock):
                    if self._loop.time() >= sweep_at:
                        sweep_at = self._loop.time() + _SWEEP_SECONDS
                        await asyncio.to_thread(self._sweep)
                    await self._look()
                self._failing = False
            except (StorageFull, StorageUnavailable) as error:
                if not self._failing:
                    _log.warning("batches cannot be read, trying again: %s", error.__cause__ or error)
                self._failing = True
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._woken.wait()
            self._woken.clear()

    async def _look(self) -> None:
        """Start work on new batches, and end those that were cancelled or have expired."""
        database = self._resources.database
        found = await database.on_thread(lambda: database.read(open_batches))
        now = self._resources.clock()
        for number, batch in found:
            job = self._job(number, batch)
            if (state := end_of(batch.state, window_over=batch.expires <= now)) is not None:
                job.end(state)
        metrics = self._resources.metrics
        metrics.open.set(len(found))
        metrics.waiting.set(sum(batch.total - batch.completed - batch.failed for _, batch in found))

    def _job(self, number: int, batch: StoredBatch) -> BatchJob:
        if number in self._jobs:
            return self._jobs[number][0]
        job = BatchJob(number, batch, self._resources)
        task = asyncio.create_task(job.run())
        self._jobs[number] = job, task
        task.add_done_callback(lambda done: self._on_done(number, done))
        return job

    def _on_done(self, number: int, task: asyncio.Task[None]) -> None:
        del self._jobs[number]  # if it has not ended, the next look starts it again
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a batch is interrupted", exc_info=error)
        elif not self._stopping:
            self.wake()

    def _sweep(self) -> None:
        self._resources.files.sweep()
        remove_orphans(self._resources.database)
        ended = int(self._resources.clock()) - self._resources.files.ttl_seconds
        self._resources.database.write(lambda database: remove_ended(database, ended))

    def _has_lock(self) -> bool:
        if self._lock is not None:
            return True
        folder = self._resources.database.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "runner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageUnavailable(f"FILES_DIR: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process runs the batches
            os.close(lock)
            return False
        self._lock = lock
        return True
