"""A minimal consumer, for tests of one queue adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from runtime.events.envelope import Envelope
from runtime.events.processor import Processor, SendChunk
from runtime.events.queues.base import Delivery, QueueOptions, Source


class Opened:
    """Opens sources and submitters of one adapter, which are closed at the end of the test.

    Args:
        options: the options of the test's own queue.
        source: the adapter's source class.
        submitter: the adapter's submitter class.
        stack: the exit stack that closes them.
    """

    def __init__(self, options: QueueOptions, source: Any, submitter: Any, stack: AsyncExitStack) -> None:
        self.options = options
        self._kinds = source, submitter
        self._stack = stack

    async def source(self, **changes: Any) -> Any:
        """Return an open source; ``changes`` override options."""
        return await self._open(self._kinds[0], changes)

    async def submitter(self, **changes: Any) -> Any:
        """Return an open submitter; ``changes`` override options."""
        return await self._open(self._kinds[1], changes)

    async def _open(self, kind: Any, changes: dict[str, Any]) -> Any:
        found = kind(replace(self.options, **changes))
        self._stack.push_async_callback(found.close)
        await found.open()
        return found


async def eventually(found: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
    """Call a function until its result is true, and return that; ``TimeoutError`` if it is not in time."""
    async with asyncio.timeout(seconds):
        while not (value := await found()):  # noqa: ASYNC110 (the servers send no event to wait for)
            await asyncio.sleep(0.02)
        return value


async def one(source: Source) -> Any:
    """Wait for the next delivery."""
    [delivery] = await eventually(lambda: source.fetch(1, 5.0), 40)
    return delivery


async def echo(envelope: Envelope, send_chunk: SendChunk | None = None) -> Mapping[str, Any]:
    """An operation that answers with its payload, in twenty chunks first if it is streamed."""
    if send_chunk is not None:
        for number in range(20):
            await send_chunk(number, {"text": f"{number} "})
    return {"answer": envelope.data}


async def work(source: Source, processor: Processor, seconds: float = 0.2, room: int = 4) -> int:
    """Process deliveries until none comes for some seconds; return how many there were."""

    async def handle(delivery: Delivery) -> None:
        envelope = delivery.envelope()
        outcome = await processor(
            envelope,
            send_chunk=lambda number, chunk: delivery.send_chunk(envelope, number, chunk),
            extend=delivery.extend,
        )
        await delivery.settle(envelope, outcome)

    done = 0
    while deliveries := await source.fetch(room, seconds):
        await asyncio.gather(*map(handle, deliveries))
        done += len(deliveries)
    return done
