"""What a consumer does, in a few lines, for tests of one adapter."""

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
    """Sources and submitters of one adapter, which are closed with a test.

    Args:
        options: of the test's own queue.
        source: the adapter's class.
        submitter: likewise.
        stack: closes them.
    """

    def __init__(self, options: QueueOptions, source: Any, submitter: Any, stack: AsyncExitStack) -> None:
        self.options = options
        self._kinds = source, submitter
        self._stack = stack

    async def source(self, **changes: Any) -> Any:
        """An open one; the options may be changed."""
        return await self._open(self._kinds[0], changes)

    async def submitter(self, **changes: Any) -> Any:
        """Likewise."""
        return await self._open(self._kinds[1], changes)

    async def _open(self, kind: Any, changes: dict[str, Any]) -> Any:
        found = kind(replace(self.options, **changes))
        self._stack.push_async_callback(found.close)
        await found.open()
        return found


async def eventually(found: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
    """What this gives once it gives something."""
    async with asyncio.timeout(seconds):
        while not (value := await found()):  # noqa: ASYNC110 (no server tells when it is so far)
            await asyncio.sleep(0.02)
        return value


async def one(source: Source) -> Any:
    """The next delivery."""
    [delivery] = await eventually(lambda: source.fetch(1, 5.0), 40)
    return delivery


async def echo(envelope: Envelope, send_chunk: SendChunk | None = None) -> Mapping[str, Any]:
    """An operation that answers with what it was asked, in twenty pieces if there is somebody to hear them."""
    if send_chunk is not None:
        for number in range(20):
            await send_chunk(number, {"text": f"{number} "})
    return {"answer": envelope.data}


async def work(source: Source, processor: Processor, seconds: float = 0.2, room: int = 4) -> int:
    """Work until nothing comes for a while; how many deliveries that were."""

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
