"""Helpers of the NATS adapter's tests: workers, senders, and the content of streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from runtime.errors import EngineRestarting, InvalidRequest, TooManyRequests
from runtime.events.envelope import Envelope
from runtime.events.outcome import Ack, Policy, Reject
from runtime.events.processor import Processor, SendChunk
from runtime.events.queues.base import BrokerUnavailable, QueueOptions, Reply
from runtime.events.queues.nats.source import NatsDelivery, NatsSource, NatsSubmitter
from tests.support.nats_server import real_nats

Stored = tuple[str, dict[str, str], bytes]


async def operation(envelope: Envelope, send_chunk: SendChunk | None = None) -> Mapping[str, Any]:
    """The operation that the workers of these tests run."""
    prompt = envelope.data.get("prompt")
    if not isinstance(prompt, str):
        raise InvalidRequest("prompt: a string", param="prompt")
    if prompt == "poison":
        raise EngineRestarting("the engine died")
    if prompt == "busy" and envelope.attempt == 1:
        raise TooManyRequests("full")
    if send_chunk is not None:
        for number, word in enumerate(prompt.split()):
            await send_chunk(number, {"word": word})
    return {"text": prompt.upper(), "by": envelope.operation}


PROCESS = Processor(operation, None, Policy(max_deliveries=3, transient_seconds=0, failure_seconds=0))


async def settle(delivery: NatsDelivery) -> None:
    """Process and settle one delivery, as a consumer does."""
    try:
        envelope = delivery.envelope()
    except InvalidRequest as error:
        await delivery.settle(None, Reject(error))
        return

    async def chunk(number: int, what: Mapping[str, Any]) -> None:
        await delivery.send_chunk(envelope, number, what)

    await delivery.settle(envelope, await PROCESS(envelope, send_chunk=chunk, extend=delivery.extend))


async def work(source: NatsSource, done: Callable[[], Awaitable[bool]] | None = None) -> int:
    """Process deliveries until none is left or ``done`` returns True, also through failures of the broker.

    Returns:
        The number of settled deliveries.
    """
    settled = 0
    while True:
        try:
            deliveries = await source.fetch(8, 0.3)
            if not deliveries and (done is None or await done()):
                return settled
            for delivery in deliveries:
                await settle(delivery)
                settled += 1
        except BrokerUnavailable:
            assert done is not None, "the broker is to be there"
            await asyncio.sleep(0.05)


@asynccontextmanager
async def opened(options: QueueOptions) -> AsyncIterator[NatsSource]:
    """Yield a connected worker's source."""
    source = NatsSource(options)
    await source.open()
    try:
        yield source
    finally:
        await source.close()


@asynccontextmanager
async def submitting(options: QueueOptions) -> AsyncIterator[NatsSubmitter]:
    """Yield a connected submitter."""
    submitter = NatsSubmitter(options)
    await submitter.open()
    try:
        yield submitter
    finally:
        await submitter.close()


async def publish(options: QueueOptions, body: Any, *, name: str = "generate", **headers: str) -> None:
    """Publish a message without the project's own client."""
    async with real_nats(options.url) as client:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {key.replace("_", "-"): value for key, value in headers.items()}
        await client.jetstream().publish(f"{options.stream}.{name}", data, headers=given or None)


async def read_all(options: QueueOptions, stream: str) -> list[Stored]:
    """Return all messages of a stream: (last part of the subject, headers, body)."""
    async with real_nats(options.url) as client:
        js = client.jetstream()
        found: list[Stored] = []
        state = (await js.stream_info(stream)).state
        for sequence in range(state.first_seq, state.last_seq + 1 if state.messages else 0):
            message = await js.get_msg(stream, sequence)
            subject = str(message.subject).removeprefix(f"{stream}.")
            found.append((subject, dict(message.headers or {}), message.data or b""))
        return found


async def waiting(options: QueueOptions) -> int:
    """Return the number of messages in the stream that are not done."""
    async with real_nats(options.url) as client:
        return int((await client.jetstream().stream_info(options.stream)).state.messages)


def envelope(id: str, prompt: str, **changes: Any) -> Envelope:
    """Return an envelope for ``operation``."""
    made = Envelope(id=id, source="test", type="warmstart.generate", operation="generate", data={"prompt": prompt})
    return replace(made, **changes)


async def submit(options: QueueOptions, what: Envelope) -> list[Reply]:
    """Submit an envelope and return all replies."""
    async with submitting(options) as submitter:
        return [reply async for reply in await submitter.submit(what, wait=True)]


async def settle_one(source: NatsSource) -> None:
    """Wait for one message and settle it."""
    (delivery,) = await source.fetch(1, 10)
    await settle(delivery)


async def left(options: QueueOptions) -> int:
    """Return the number of messages the group still has to process.

    After a crash the stream may also hold done messages, which are not delivered.
    """
    async with real_nats(options.url) as client:
        consumer = await client.jetstream().consumer_info(options.stream, options.group)
        return int(consumer.num_pending or 0) + int(consumer.num_ack_pending or 0)


async def answered(options: QueueOptions) -> int:
    """Return the number of answers so far."""
    async with real_nats(options.url) as client:
        return int((await client.jetstream().stream_info(options.results)).state.messages)


async def settled(delivery: NatsDelivery) -> bool:
    """Settle a delivery; return False if the broker is unavailable."""
    try:
        await delivery.settle(delivery.envelope(), Ack({"by": "cut"}))
    except BrokerUnavailable:
        return False
    return True


async def eventually(holds: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    """Wait until a condition holds; ``TimeoutError`` if it does not in time."""
    async with asyncio.timeout(seconds):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.02)


async def opens(source: NatsSource) -> bool:
    """Open a source; return False if the broker is unavailable."""
    try:
        await source.open()
    except BrokerUnavailable:
        return False
    return True
