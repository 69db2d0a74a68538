"""Streamed responses: server-sent events (HTML Living Standard section 9.2), with comments while nothing else is sent,
or lines of JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiohttp import web

from handlers.operations import StreamForm
from runtime.cancellation import cancel_and_wait

KEEP_ALIVE_SECONDS = 5.0
"""After this time without an event a comment is sent: proxies close a connection that is silent for a minute."""

_COMMENT = b": keep-alive\n\n"
_TYPES = {"data": "text/event-stream", "named": "text/event-stream", "lines": "application/x-ndjson"}


def event_bytes(event: Mapping[str, Any], form: StreamForm) -> bytes:
    """Return an event as it is sent.

    Args:
        event: the event's data.
        form: the form of the stream.
    """
    data = json.dumps(event, separators=(",", ":")).encode()
    if form == "lines":
        return data + b"\n"
    name = f"event: {event['type']}\n".encode() if form == "named" else b""
    return name + b"data: " + data + b"\n\n"


class EventStream:
    """A streamed response. Its status and headers are sent with the first event or comment.

    Until then, an error can still be answered with a status of its own.

    Args:
        request: the request to answer.
        headers: returns further headers; called when the response begins.
        form: the form of the stream.

    Attributes:
        events: the number of events sent.
    """

    def __init__(self, request: web.Request, headers: Callable[[], Mapping[str, str]], form: StreamForm) -> None:
        self.events = 0
        self._request = request
        self._headers = headers
        self._form = form
        self._response: web.StreamResponse | None = None
        self._starting = asyncio.Lock()
        self._writes = 0

    @property
    def begun(self) -> bool:
        """Whether the response has begun, so that its status cannot be changed."""
        return self._response is not None

    async def send(self, event: Mapping[str, Any]) -> None:
        """Send an event; waits while the client does not receive what was sent before (aiohttp buffers 64 KiB)."""
        await self.write(event_bytes(event, self._form))
        self.events += 1

    async def write(self, data: bytes) -> None:
        """Send one or more whole events or comments."""
        self._writes += 1
        await (self._response or await self._start()).write(data)

    async def begun_response(self) -> web.StreamResponse:
        """Return the response; aiohttp ends it when the middlewares have seen it, so that it is recorded before."""
        return self._response or await self._start()

    async def _start(self) -> web.StreamResponse:
        async with self._starting:  # a comment may be about to start it
            if self._response is None:
                response = web.StreamResponse(
                    headers={
                        "Content-Type": _TYPES[self._form],
                        "Cache-Control": "no-store",
                        "X-Accel-Buffering": "no",
                    }
                    | dict(self._headers())
                )
                await response.prepare(self._request)
                self._response = response
            return self._response

    async def send_comments(self) -> None:
        """Send a comment whenever nothing was sent for a while, until it is cancelled; lines of JSON have none."""
        while self._form != "lines":
            before = self._writes
            await asyncio.sleep(KEEP_ALIVE_SECONDS)
            if self._writes == before:
                with suppress(ConnectionError):  # the next event meets it, too
                    await self.write(_COMMENT)


@asynccontextmanager
async def event_stream(
    request: web.Request, headers: Callable[[], Mapping[str, str]], form: StreamForm
) -> AsyncIterator[EventStream]:
    """Yield a stream that sends comments while the block sends nothing. Arguments as for ``EventStream``."""
    stream = EventStream(request, headers, form)
    comments = asyncio.create_task(stream.send_comments())
    try:
        yield stream
    finally:
        await cancel_and_wait(comments)
