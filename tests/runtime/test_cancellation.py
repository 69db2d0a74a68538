"""runtime.cancellation: what a library makes of a cancellation is not what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from runtime import cancellation
from runtime.cancellation import cancel_and_wait, reraise_cancellation


async def swallows() -> None:
    """A library that ends as if nothing had happened."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return


async def fails() -> None:
    """One that reports an error of its own."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        raise ConnectionError("closed") from None


async def waits() -> None:
    """One that does as it should."""
    await asyncio.sleep(60)


@pytest.mark.parametrize("library", [swallows, fails, waits])
async def test_a_cancellation_is_raised(library: Callable[[], Awaitable[None]]) -> None:
    """At the end of the block, whatever the library did with it."""
    after = False

    async def call() -> None:
        nonlocal after
        with reraise_cancellation():
            await library()
        after = True

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert not after


async def test_what_was_no_cancellation_stays() -> None:
    """Results and errors of the block, its own time limit, and a cancellation from before it."""
    with reraise_cancellation():
        await asyncio.sleep(0)
    with pytest.raises(ConnectionError), reraise_cancellation():
        raise ConnectionError
    with pytest.raises(TimeoutError), reraise_cancellation():
        async with asyncio.timeout(0):
            await asyncio.sleep(60)

    async def cleans_up() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            with reraise_cancellation():
                await asyncio.sleep(0)
        return "cleaned up"

    task = asyncio.create_task(cleans_up())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == "cleaned up"


async def test_a_time_limit_that_a_library_loses() -> None:
    """It is one all the same."""

    async def call() -> None:
        async with asyncio.timeout(0):
            with reraise_cancellation():
                await swallows()

    with pytest.raises(TimeoutError):
        await call()


async def test_tasks_end() -> None:
    """Each is cancelled; its error, or that it has ended before, is nobody's trouble."""
    tasks = [asyncio.create_task(library()) for library in (swallows, fails, waits)]
    await asyncio.sleep(0)
    await cancel_and_wait(*tasks)
    assert all(task.done() for task in tasks)
    await cancel_and_wait(*tasks)
    await cancel_and_wait()


@pytest.mark.parametrize(("deaf", "ends"), [(1, True), (2, False)])
async def test_a_task_that_goes_on(
    deaf: int, ends: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is cancelled a second time; one that goes on even then is left and logged, and holds nobody up."""
    monkeypatch.setattr(cancellation, "_END_SECONDS", 0.01)

    async def loop() -> None:
        for _ in range(deaf):
            await swallows()
        await asyncio.sleep(60)

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)
    await cancel_and_wait(task)
    assert task.done() == ends
    assert bool(caplog.records) != ends
    await cancel_and_wait(task)
