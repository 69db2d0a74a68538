"""Worker processes over a real broker, and what a reader of the results sees."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from runtime.cancellation import cancel_and_wait
from runtime.events.envelope import TYPE_PREFIX, Envelope
from runtime.events.queues.base import QueueOptions
from runtime.events.queues.factory import open_submitter
from tests.events.brokers import Results
from tests.support.models import ROOT

PATIENCE = 120.0


class Worker:
    """``warmstart consume`` as a process.

    Args:
        options: the queue.
        log: file for what it prints.
        arguments: more of them.
        settings: environment variables.
    """

    def __init__(self, options: QueueOptions, log: Path, *arguments: str, **settings: str) -> None:
        self._options = options
        self.log = log
        self._arguments = arguments
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait for nothing."""
        options = self._options
        command = ["consume", options.url, "--stream", options.stream, "--group", options.group]
        command += ["--results", options.results, "--dead", options.dead, "--port", "0", *self._arguments]
        program = "import sys, server; sys.exit(server.main(sys.argv[1:]))"
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", program, *command),
                cwd=ROOT,
                env=os.environ | {"LOG_FORMAT": "json"} | self._settings,
                stdout=log,
                stderr=log,
            )

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.returncode is None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Its exit status."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), PATIENCE)

    async def kill(self) -> None:
        """SIGKILL, as the out-of-memory killer would."""
        if self.running:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            await self.ended()


async def until(condition: Any, what: str, seconds: float = PATIENCE, *, worker: Worker | None = None) -> None:
    """Wait for a condition; a worker that ends meanwhile is an error."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        if worker is not None and not worker.running:
            raise AssertionError(f"the worker has ended: {worker.log.read_text()[-3000:]}")
        if asyncio.get_running_loop().time() > end:
            tail = worker.log.read_text()[-3000:] if worker is not None else ""
            raise AssertionError(f"{what}: not within {seconds:g} s {tail}")
        await asyncio.sleep(0.01)


def envelope(id: str, data: dict[str, Any], operation: str = "complete", **changes: Any) -> Envelope:
    """A piece of work."""
    return Envelope(id=id, source="test", type=TYPE_PREFIX + operation, operation=operation, data=data, **changes)


@asynccontextmanager
async def submitting(queue: QueueOptions) -> AsyncIterator[Any]:
    """Sends envelopes to a queue; the broker has them when the call returns."""
    submitter = open_submitter(queue)
    await submitter.open()

    async def submit(work: Sequence[Envelope]) -> None:
        for one in work:
            replies = await submitter.submit(one, wait=False)
            await replies.aclose()

    try:
        yield submit
    finally:
        await submitter.close()


@asynccontextmanager
async def reading(results: Results) -> AsyncIterator[Results]:
    """Results that are being read; a reader that fails fails the test."""
    task = asyncio.create_task(results.run())
    try:
        yield results
        if task.done():
            task.result()
    finally:
        await cancel_and_wait(task)
