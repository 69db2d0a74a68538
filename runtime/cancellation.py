"""Cancellation that holds although a library loses it.

A library that catches ``CancelledError``, or that calls ``asyncio.wait_for`` on Python 3.11 (which returns the result
where the cancellation comes in the same turn of the event loop, CPython issue 86296), returns as if its caller had not
been cancelled. A loop around such a call then runs for ever, and so does everybody who waits for its end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_log = logging.getLogger("warmstart")

_TRIES, _END_SECONDS = 2, 5.0  # each longer than what a cancelled task still has to do


@contextmanager
def reraise_cancellation() -> Iterator[None]:
    """Raise ``CancelledError`` at the end of a block in which the current task was cancelled, if the block has lost it.

    The block's own time limits (``asyncio.timeout``) do not count: they take their cancellation back.

    Raises:
        asyncio.CancelledError: the task was cancelled, and the block returned or raised something else.
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
    """Cancel tasks until they have ended. Their results and errors are not raised.

    A task that has not ended after 5 seconds is cancelled once more, and after another 5 seconds left alone and logged.
    """
    running = {task for task in tasks if not task.done()}
    for _ in range(_TRIES):
        if running:
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=_END_SECONDS)
    for task in running:
        _log.error("a task was cancelled and has not ended: %r", task)
