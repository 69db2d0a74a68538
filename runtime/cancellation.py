"""Makes task cancellation reliable around libraries that swallow it.

A library that catches ``CancelledError``, or that calls ``asyncio.wait_for`` on Python 3.11 (which returns the result
if the cancellation arrives in the same iteration of the event loop, CPython issue 86296), returns as if its caller had
not been cancelled. A loop around such a call then never ends, and neither do the tasks that wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_log = logging.getLogger("warmstart")

_TRIES, _END_SECONDS = 2, 5.0  # each longer than a cancelled task's cleanup takes


@contextmanager
def reraise_cancellation() -> Iterator[None]:
    """Raise ``CancelledError`` at the end of a block if the current task was cancelled and the block swallowed it.

    Time limits inside the block (``asyncio.timeout``) do not count, because they undo their own cancellation.

    Raises:
        asyncio.CancelledError: the task was cancelled, and the block returned or raised another exception.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        yield
    except Exception as error:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended. Their results and errors are discarded.

    A task that has not ended after 5 seconds is cancelled once more; after another 5 seconds it is logged and left
    running.
    """
    running = {task for task in tasks if not task.done()}
    for _ in range(_TRIES):
        if running:
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=_END_SECONDS)
    for task in running:
        _log.error("a task was cancelled and has not ended: %r", task)
