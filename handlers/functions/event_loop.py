"""One event loop for ways in that have none: it runs on a thread of its own, for as long as the process does.

A model's engine, connections and records belong to the loop they were first used on; with ``asyncio.run`` for each call
that loop would be gone by the next one.
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
    """Run a coroutine on the loop and wait for what comes of it; from any thread, many at a time.

    Args:
        coroutine: to run. It is cancelled if the wait is cut short, by the timeout or by Ctrl-C.
        timeout: seconds to wait at most; None for as long as it takes.

    Raises:
        TimeoutError: it took longer.
        RuntimeError: called on the loop's own thread, which would wait for itself.
    """
    loop = _running()
    if _on(loop):
        coroutine.close()
        raise RuntimeError("this runs on the loop already: await it")
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result(timeout)
    finally:
        future.cancel()  # of no effect on one that has ended


def _on(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _running() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="warmstart-loop", daemon=True).start()
        return _loop
