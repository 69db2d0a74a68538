"""One event loop for ways in that have none."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from handlers.functions.event_loop import run
from tests.support.fakes import until


async def _where() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    return asyncio.get_running_loop(), threading.current_thread()


def test_all_calls_share_one_loop() -> None:
    """From whatever thread they come: what belongs to a loop outlives the call that made it."""
    with ThreadPoolExecutor(8) as pool:
        places = {*pool.map(lambda _: run(_where()), range(32)), run(_where())}
    ((_, thread),) = places
    assert thread is not threading.current_thread()
    assert thread.daemon  # it does not keep a process that wants to end


def test_what_it_raises_is_raised() -> None:
    """As a call would."""

    async def fail() -> None:
        raise LookupError("planted")

    with pytest.raises(LookupError, match="planted"):
        run(fail())


async def test_a_wait_cut_short_cancels_the_work() -> None:
    """Nothing goes on that nobody waits for."""
    ended = threading.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        run(work(), timeout=0.01)
    await until(ended.is_set)


def test_it_does_not_wait_for_itself() -> None:
    """A call from the loop's own thread is a mistake to say so, not a process that hangs."""

    async def inner() -> None:
        run(_where())

    with pytest.raises(RuntimeError, match="await"):
        run(inner())
