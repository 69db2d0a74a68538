"""What a consumer does, in a few lines, for tests of one adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from runtime.events.envelope import Envelope
from runtime.events.process import Processor, SendChunk
from runtime.events.source import Delivery, Source


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
