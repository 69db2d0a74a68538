"""Events' way in: from an envelope to an operation and its answer."""

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

_GRACE_SECONDS = 5.0  # for chunks that are not sent yet when the answer is there


class Dispatcher:
    """See ``runtime.events.processor.Dispatch``.

    Args:
        ctx: what the operations get; their work is queued behind that of people who wait for it.
        operations: that events may call; all that are not an admin's if there is none.

    Raises:
        SettingsError: one is no operation.
    """

    def __init__(self, ctx: Context, operations: tuple[str, ...] = ()) -> None:
        if unknown := [name for name in operations if name not in OPERATIONS]:
            raise SettingsError(f"EVENTS_OPERATIONS: no operation {unknown[0]!r}; there are {', '.join(OPERATIONS)}")
        self._ctx = replace(ctx, queued=True)
        self._allowed = frozenset(operations or (name for name, found in OPERATIONS.items() if not found.admin))

    async def __call__(self, envelope: Envelope, send_chunk: SendChunk | None = None) -> Mapping[str, Any]:
        """See ``Dispatch``."""
        operation = find(envelope.operation, self._ctx)
        if envelope.operation not in self._allowed:
            raise InsufficientScope(f"events may not call {envelope.operation} (EVENTS_OPERATIONS)", param="operation")
        if send_chunk is None or operation.stream is None:
            return await operation.handle(envelope.data, self._ctx)
        chunks = await _stream(operation, envelope.data, self._ctx, send_chunk)
        return join(envelope.operation, chunks)


async def _stream(operation: Operation, payload: Payload, ctx: Context, send_chunk: SendChunk) -> list[Payload]:
    """All chunks of an answer, which are sent as they come, beside the work: it never waits for the broker.

    Chunks that wait to be sent are those of one answer at most, which are kept for it in any case. What is left of them
    when the answer is there gets a few seconds more.
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
    """The payload with the usage asked for, which the whole answer has, and whether its sender asked for all that the
    stream then gives.
    """
    if operation.request not in (ChatRequest, CompletionsRequest):
        return payload, True
    try:
        request = cast(ChatRequest | CompletionsRequest, parse_stream(operation.request, payload))
    except InvalidRequest:
        return payload, True  # which the stream raises again, where it is traced
    options = request.stream_options
    return payload | {"stream_options": {"include_usage": True}}, options is not None and options.include_usage


async def _send(unsent: asyncio.Queue[Payload | None], send_chunk: SendChunk) -> None:
    try:
        for number in itertools.count():
            chunk = await unsent.get()
            if chunk is None:
                return
            await send_chunk(number, chunk)
    except Exception as error:  # the answer itself is what counts
        _log.warning("chunks are not sent any more: %s", error)
