"""Runs an event's envelope as an operation and returns the answer; the entry point for queues and CloudEvents."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from handlers.context import Context
from handlers.dispatch.join import join
from handlers.dispatch.lookup import find
from handlers.operations import OPERATIONS, Operation, Payload
from handlers.schemas.parsing import parse_stream
from handlers.schemas.requests import ChatRequest, CompletionsRequest
from runtime.errors import InsufficientScope, InvalidRequest, SettingsError
from runtime.events.envelope import Envelope
from runtime.events.processor import SendChunk

_log = logging.getLogger("warmstart.events")

_GRACE_SECONDS = 5.0  # to send the remaining chunks once the answer is complete


class Dispatcher:
    """Calls the operation that an envelope names; implements ``runtime.events.processor.Dispatch``.

    Args:
        ctx: the operations' context; they run as background work, behind interactive requests.
        operations: the operations that events may call; if empty, all but the admin operations.

    Raises:
        SettingsError: a name is not an operation.
    """

    def __init__(self, ctx: Context, operations: tuple[str, ...] = ()) -> None:
        if unknown := [name for name in operations if name not in OPERATIONS]:
            raise SettingsError(f"EVENTS_OPERATIONS: no operation {unknown[0]!r}; there are {', '.join(OPERATIONS)}")
        self._ctx = replace(ctx, background=True)
        self._allowed = frozenset(operations or (name for name, found in OPERATIONS.items() if not found.admin))

    async def __call__(self, envelope: Envelope, send_chunk: SendChunk | None = None) -> Mapping[str, Any]:
        """Run the envelope's operation and return its answer.

        Args:
            envelope: the event; names the operation and has its payload.
            send_chunk: called with the number and content of each chunk if the operation streams; None for no chunks.

        Raises:
            NotFound: there is no such operation.
            InsufficientScope: events may not call it.
            ServiceError: the operation's own errors.
        """
        operation = find(envelope.operation, self._ctx)
        if envelope.operation not in self._allowed:
            raise InsufficientScope(f"events may not call {envelope.operation} (EVENTS_OPERATIONS)", param="operation")
        if send_chunk is None or operation.stream is None:
            return await operation.handle(envelope.data, self._ctx)
        chunks = await _stream(operation, envelope.data, self._ctx, send_chunk)
        return join(envelope.operation, chunks)


async def _stream(operation: Operation, payload: Payload, ctx: Context, send_chunk: SendChunk) -> list[Payload]:
    """Collect all chunks of an answer and send them concurrently, so that the generation never waits for the broker.

    The unsent chunks need no bound, because all chunks of the answer are kept anyway. Those left when the answer is
    complete get ``_GRACE_SECONDS`` more.
    """
    assert operation.stream is not None  # else this is not called
    payload, shown = _asking_usage(operation, payload)
    chunks: list[Payload] = []
    unsent: asyncio.Queue[Payload | None] = asyncio.Queue()
    sender = asyncio.create_task(_send(unsent, send_chunk))
    try:
        async with aclosing(operation.stream(payload, ctx)) as stream:
            async for chunk in stream:
                chunks.append(chunk)
                if shown:
                    unsent.put_nowait(chunk)
                elif chunk["choices"]:
                    unsent.put_nowait({name: value for name, value in chunk.items() if name != "usage"})
        unsent.put_nowait(None)
        _, late = await asyncio.wait({sender}, timeout=_GRACE_SECONDS)
        if late:
            _log.warning("%d chunks are not sent: the broker is too slow", unsent.qsize())
    finally:
        sender.cancel()
        await asyncio.wait({sender}, timeout=_GRACE_SECONDS)
    return chunks


def _asking_usage(operation: Operation, payload: Payload) -> tuple[Payload, bool]:
    """Request the usage, which the whole answer needs.

    Returns:
        The payload with ``include_usage``, and whether the sender gets the usage in its chunks, too.
    """
    if operation.request not in (ChatRequest, CompletionsRequest):
        return payload, True
    try:
        request = cast(ChatRequest | CompletionsRequest, parse_stream(operation.request, payload))
    except InvalidRequest:
        return payload, True  # the stream raises the error again, inside its trace
    if request.include_usage:
        return payload, True
    return payload | {"stream_options": {"include_usage": True}}, False


async def _send(unsent: asyncio.Queue[Payload | None], send_chunk: SendChunk) -> None:
    try:
        for number in itertools.count():
            chunk = await unsent.get()
            if chunk is None:
                return
            await send_chunk(number, chunk)
    except Exception as error:  # a failed chunk must not fail the answer
        _log.warning("chunks are not sent any more: %s", error)
