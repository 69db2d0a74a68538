"""Receiving requests: deadlines for headers and body, what is no HTTP, and no answer before the middlewares ran.

A client that drips bytes must not hold a connection or a handler for ever.

What aiohttp 3.14.5 does by itself (measured; ``tests/middleware/test_receiving.py`` holds it):

* Headers: ``keepalive_timeout`` is an absolute limit from a connection's start, or from when it fell idle, until the
  next request's headers are complete. But it must outlast the idle time of a proxy in front (default 3630 s), and 0
  means no limit at all for a first request.
* Body: a handler that reads waits for ever; only a body left unread is cut, ``lingering_time`` after the answer.

``DeadlineRunner`` gives headers a shorter limit of their own, ``body_deadline_middleware`` limits the body. Neither can
touch a handler at work or a stream: the first closes only connections on which aiohttp waits for a request, the second
is over before the handler starts. A client that is slow to *take* its answer is not limited here.

aiohttp answers ``Expect`` (RFC 9110 section 10.1.1) before any middleware, so that an address that is not allowed would
be told to go on. Here the header is put aside, and ``100 Continue`` is sent when a body is about to be read.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDict, CIMultiDictProxy

from runtime.errors import InternalError, InvalidRequest, PayloadTooLarge, RequestTimeout, ServiceError

_log = logging.getLogger("warmstart.edge")

_CONTINUE: web.RequestKey[bool] = web.RequestKey("continue")
_LATE: web.RequestKey[bool] = web.RequestKey("late")


async def read_body(request: web.Request, seconds: float) -> bytes:
    """The whole body, which aiohttp keeps, so that ``request.read()`` and ``.json()`` afterwards cost nothing.

    Raises:
        RequestTimeout: it was not complete in time; ``close_late`` then closes the connection.
        PayloadTooLarge: it is larger than the application's ``client_max_size``.
        InvalidRequest: its framing or its compression is broken.
        ConnectionError: the client has gone.
    """
    if request.get(_CONTINUE):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer proper has not begun
    try:
        async with asyncio.timeout(seconds):
            return await request.read()
    except TimeoutError:
        request[_LATE] = True
        raise RequestTimeout(f"The request body did not arrive within {seconds:g} seconds.") from None
    except web.HTTPRequestEntityTooLarge:
        raise PayloadTooLarge(f"The request body is larger than {request.client_max_size} bytes.") from None
    except web.RequestPayloadError:
        raise InvalidRequest("The request body could not be decoded.") from None


def body_deadline_middleware(seconds: float) -> Middleware:
    """Middleware that reads the body before the handler runs; errors as for ``read_body``.

    Its place is behind all that refuses by address or header (nobody unknown is waited for), before signing reads it.
    """

    @web.middleware
    async def body_deadline(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.can_read_body:
            await read_body(request, seconds)
        return await handler(request)

    return body_deadline


async def close_late(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """``on_response_prepare`` signal: the answer to a late body closes the connection (RFC 9110 section 15.5.9).

    aiohttp drops what still comes in for ``lingering_time``, so that the client gets to see the answer, then closes.
    """
    if request.get(_LATE):
        response.force_close()
        response.headers[hdrs.CONNECTION] = "close"  # aiohttp has filled it in before this signal


class _Connection(web.RequestHandler):
    """aiohttp's connection, with our date put into its idle timer, and our answer to what is no HTTP.

    That timer's callback closes a connection only while it waits for a request, and is set anew after each answer.
    """

    def __init__(self, manager: web.Server, header_timeout: float, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._header_timeout = header_timeout

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._limit()  # a connection that has never sent a request has not earned the long idle time

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if data and self._waiter is not None and not self._waiter.done():
            self._limit()  # bytes came in and aiohttp still waits: a request has begun and its headers are incomplete

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What never became a request (no middleware sees it), or failed outside all middlewares.

        aiohttp would answer plain text that repeats the bytes sent, and log them with a traceback, credentials and all.
        """
        error: ServiceError = InternalError("something went wrong here")
        if 400 <= status < 500:
            error = InvalidRequest("this is not a valid HTTP/1.1 request")
            _log.info("unreadable request from %s: %s", request.remote, type(exc).__name__)
        elif isinstance(exc, ConnectionError):
            _log.info("a client left before its answer began")
        else:
            _log.error("a request failed outside all middlewares", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        response = web.json_response(error.problem(), status=error.status, content_type="application/problem+json")
        response.force_close()
        return response

    def _limit(self) -> None:
        close_at = self._loop.time() + self._header_timeout
        # The next drip must not move the date: a date that is nearer stays.
        if self._keepalive_handle is None or close_at < self._next_keepalive_close_time:
            self.keep_alive(True)  # cancels the timer
            self._next_keepalive_close_time = close_at
            self._keepalive_handle = self._loop.call_at(close_at, self._process_keepalive)


class _Server(web.Server):
    header_timeout: float

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self.header_timeout, loop=self._loop, **self._kwargs)


class DeadlineRunner(web.AppRunner):
    """``web.AppRunner`` that closes connections whose request headers are not complete in time, without an answer.

    Args:
        header_timeout: seconds from a connection's first moment, or from the first byte after it was idle.
        kwargs: as for ``web.AppRunner``; ``keepalive_timeout`` is the idle time between requests.
    """

    def __init__(self, app: web.Application, *, header_timeout: float, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self._header_timeout = header_timeout

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()

        def make_request(message: RawRequestMessage, *rest: Any) -> web.BaseRequest:
            expected = message.headers.get(hdrs.EXPECT)
            if expected is None:
                return made.request_factory(message, *rest)
            headers = CIMultiDict(message.headers)
            del headers[hdrs.EXPECT]
            request = made.request_factory(message._replace(headers=CIMultiDictProxy(headers)), *rest)
            request[_CONTINUE] = expected.lower() == "100-continue" and message.version == HttpVersion11
            return request

        server = _Server(
            made.request_handler,
            request_factory=make_request,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,
            **made._kwargs,
        )
        server.header_timeout = self._header_timeout
        return server
