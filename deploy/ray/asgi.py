"""The service as an ASGI application: each request is sent to a backend as the bytes of HTTP/1.1, and so is its answer.

There is no second copy of any handler or rule: routes, errors, limits, keys, signatures and audit are those of the
aiohttp application behind the backend. What remains here is what ASGI has and sockets have not: a body is read before
it is sent on, a client that disconnects is an event, and a backend may be another process, which can end. Then the
request is sent again if the client has got nothing of its answer, and else ends with an error event.

Source: ASGI 3.0, HTTP and WebSocket message format 2.5.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from deploy.ray.affinity import Affinity, affinity_of
from deploy.ray.wire import MalformedResponse, ResponseReader, request_bytes
from handlers.api.routes import error_form, match
from handlers.operations import OPERATIONS, StreamForm
from middleware.security_headers import secure
from runtime.cancellation import cancel_and_wait
from runtime.error_response import error_response
from runtime.errors import EngineRestarting, RequestTimeout, ServiceError
from runtime.settings import Settings
from views.event_stream import event_bytes
from views.operations import error_event

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

ATTEMPTS = 4
"""How often a request is sent to a replica: a rolling update may end several that one request meets."""

_log = logging.getLogger("warmstart.ray")


class ReplicaLost(ConnectionError):
    """The replica that ran a request has ended, or cannot be reached."""


@dataclass(frozen=True, slots=True)
class ForwardedRequest:
    """A request on its way to a replica.

    Args:
        data: the bytes of the request.
        peer: the client's address and port as the ASGI server has seen them; None if it does not know.
        tls: whether the client used TLS.
        affinity: what it says about the replica that should get it.
    """

    data: bytes
    peer: tuple[str, int] | None
    tls: bool
    affinity: Affinity


Backend = Callable[[ForwardedRequest], AsyncGenerator[bytes, None]]
"""Sends a request and yields the bytes of its response.

Raises ``ReplicaLost``, or a ``ServiceError`` that is the answer. Closing it disconnects."""


class AsgiApplication:
    """An ASGI 3 application whose answers are a backend's.

    Args:
        backend: sends requests.
        settings: the service's settings, for the limits of bodies.
        session_header: the name of the header that names a request's session, in lower case.
        drop: names of response header fields, in lower case, that the ASGI server sets itself.
    """

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        *,
        session_header: str = "x-session-id",
        drop: tuple[bytes, ...] = (),
    ) -> None:
        self._backend = backend
        self._max_body = settings.max_body_bytes
        self._body_seconds = settings.body_timeout_seconds
        self._session_header = session_header.encode()
        self._drop = frozenset(drop)

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request (``http``), or the events of the server's start and end (``lifespan``)."""
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003, "reason": "there are no WebSockets here"})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        answer = _Answer(scope, send, self._drop)
        try:
            async with asyncio.timeout(self._body_seconds):
                body = await self._body(receive)
        except TimeoutError:
            error = RequestTimeout(f"The request body did not arrive within {self._body_seconds:g} seconds.")
            await answer.fail(error)
            return
        if body is None:  # the client has disconnected
            return
        client = scope.get("client")
        request = ForwardedRequest(
            request_bytes(scope, body),
            (str(client[0]), int(client[1])) if client else None,
            scope.get("scheme") == "https",
            affinity_of(scope["headers"], body, self._session_header),
        )
        answering = asyncio.create_task(self._answer(request, answer))
        watching = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering
        finally:
            await cancel_and_wait(watching)
            await cancel_and_wait(answering)

    async def _body(self, receive: Receive) -> bytes | None:
        """Return the body, of one that is too large more than the limit, which the application then refuses."""
        parts, size, more = [], 0, True
        while more and size <= self._max_body:
            message = await receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
        return b"".join(parts)

    async def _answer(self, request: ForwardedRequest, answer: _Answer) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            reader = ResponseReader(answer.method)
            try:
                async with aclosing(self._backend(request)) as received:
                    async for data in received:
                        await answer.forward(reader, reader.feed(data))
                        if reader.complete:  # the backend ends by itself: closing it would count as a disconnect
                            await answer.end()
                if not reader.complete:
                    reader.end()
                await answer.end()
                return
            except (ReplicaLost, MalformedResponse) as error:
                if answer.ended:
                    return
                _log.warning("attempt %d: %s: %s", attempt, type(error).__name__, error)
                if answer.committed:
                    break
            except ServiceError as error:
                await answer.fail(error)
                return
        await answer.fail(EngineRestarting("the replica that answered this request has ended"))


async def lifespan(receive: Receive, send: Send) -> None:
    """Confirm the server's start and its end (ASGI 3.0, Lifespan Protocol 2.0); there is nothing to do at either."""
    while (await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


class _Answer:
    """The response to one request, as far as it was sent.

    Nothing is sent before the first bytes of a body, and comments of an event stream do not count as part of an answer.
    So a request can be sent again until the first event or byte of its answer.

    Attributes:
        method: the request's method.
        committed: whether the client has got a part of the answer.
        ended: whether the client has got all of it.
    """

    def __init__(self, scope: Mapping[str, Any], send: Send, drop: frozenset[bytes]) -> None:
        self.method: str = scope["method"]
        self.committed = self.ended = False
        self._path: str = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        self._secure = scope.get("scheme") == "https"
        self._send, self._drop = send, drop
        self._begun = self._is_stream = False
        self._events = 0
        self._reader: ResponseReader | None = None

    async def forward(self, reader: ResponseReader, body: bytes) -> None:
        """Send the next bytes of a body, behind the status and the header fields if those were not sent yet."""
        self._reader = reader
        if not body or reader.head is None:
            return
        if self._begun and not self.committed and not reader.head.is_stream:
            # A comment has sent the status of a stream, and the second replica refuses the request.
            raise EngineRestarting("the replica that answered this request has ended, and no other accepts it")
        await self._begin(reader)
        if not self._is_stream or not (body.startswith(b":") and b"data:" not in body):
            self.committed = True
            self._events += body.count(b"data:")  # of server-sent events; lines of JSON have no number
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """Send the end of the response, once."""
        if self.ended:
            return
        self.ended = True
        if self._reader is not None:
            await self._begin(self._reader)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: ServiceError) -> None:
        """Send an error: as the response, or as the last event of a stream that has begun.

        Raises:
            ConnectionError: another response has begun, so that the connection can only be closed.
        """
        if self._begun:
            if not self._is_stream:
                raise ConnectionError("the replica ended within the response") from error
            form = self._stream_form
            event = error_event(error, error_form(self._path), form, self._events)
            await self._send({"type": "http.response.body", "body": event_bytes(event, form), "more_body": False})
            return
        rendered = error_response(error, error_form(self._path))
        headers = dict(rendered.headers)
        secure(headers, https=self._secure)
        fields = [(name.lower().encode(), value.encode()) for name, value in headers.items() if name != "Server"]
        fields.append((b"content-length", str(len(rendered.body)).encode()))
        await self._send({"type": "http.response.start", "status": rendered.status, "headers": fields})
        body = b"" if self.method == "HEAD" else rendered.body
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    @property
    def _stream_form(self) -> StreamForm:
        try:
            route, _ = match(self.method, self._path)
        except ServiceError:
            return "data"
        return OPERATIONS[route.operation].stream_form

    async def _begin(self, reader: ResponseReader) -> None:
        if self._begun or reader.head is None:
            return
        self._begun, self._is_stream = True, reader.head.is_stream
        message = reader.head.message()
        message["headers"] = [field for field in message["headers"] if field[0] not in self._drop]
        await self._send(message)


async def _disconnected(receive: Receive) -> None:
    """Wait until the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
