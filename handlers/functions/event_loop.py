"""A process-wide event loop on its own thread, for entry points that have no event loop.

Engines, connections and idempotency records belong to the loop of their first use; ``asyncio.run`` for each call would
close that loop before the next call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def run(coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
    """Run a coroutine on the loop and wait for its result; any number of threads may call it.

    Args:
        coroutine: the coroutine. It is cancelled if the wait ends early, by the timeout or by Ctrl-C.
        timeout: the longest wait in seconds; None for no limit.

    Raises:
        TimeoutError: the coroutine did not end in time.
        RuntimeError: called on the loop's own thread, which would deadlock.
    """
    loop = _get_loop()
    if _is_current(loop):
        coroutine.close()
        raise RuntimeError("this is called on the event loop's own thread; await the coroutine instead")
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result(timeout)
    finally:
        future.cancel()  # has no effect on a future that is done


def _is_current(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _get_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="warmstart-loop", daemon=True).start()
        return _loop
