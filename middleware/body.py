"""Receiving a request's body: a deadline, a size, no compression, and ``100 Continue`` once it is about to be read.

What belongs to the connection is in ``middleware/connection/runner.py``.
"""

from __future__ import annotations

import asyncio
import random

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from middleware.request_keys import CONTINUE, LAST
from runtime.errors import InvalidRequest, PayloadTooLarge, RequestTimeout, UnsupportedMediaType

_SPREAD = 1.2  # of deadlines: hundreds of slow bodies that began together must not all be answered in one moment


async def read_body(request: web.Request, seconds: float) -> bytes:
    """The whole body, which aiohttp keeps, so that ``request.read()`` and ``.json()`` afterwards cost nothing.

    Raises:
        RequestTimeout: it was not complete in time; ``set_connection_headers`` then closes the connection.
        PayloadTooLarge: it is larger than the application's ``client_max_size``; not read if it says so beforehand.
        UnsupportedMediaType: it is compressed.
        InvalidRequest: its framing is broken.
        ConnectionError: the client has gone.
    """
    if hdrs.CONTENT_ENCODING in request.headers:
        codings = ",".join(request.headers.getall(hdrs.CONTENT_ENCODING)).lower().split(",")
        if any(coding.strip(" \t") not in ("", "identity") for coding in codings):
            raise UnsupportedMediaType("send the body as it is, without Content-Encoding")
    most = request.client_max_size
    if (request.content_length or 0) > most:
        request[LAST] = True
        raise _over(request)
    if request.get(CONTINUE):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer proper has not begun
    try:
        if request.content.is_eof() and request._read_bytes is None:
            # All there, as most are: no timer, and all that request.read() does but its loop, which takes 4 us.
            body = request.content.read_nowait()
            if len(body) > most:
                raise _over(request)
            request._read_bytes = body
            return body
        async with asyncio.timeout(seconds * random.uniform(1, _SPREAD)):  # noqa: S311
            return await request.read()
    except TimeoutError:
        request[LAST] = True
        raise RequestTimeout(f"The request body did not arrive within {seconds:g} seconds.") from None
    except web.HTTPRequestEntityTooLarge:
        raise _over(request) from None
    except web.RequestPayloadError:
        raise InvalidRequest("The request body could not be decoded.") from None


def _over(request: web.Request) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than {request.client_max_size} bytes (MAX_BODY_BYTES).")


def body_deadline_middleware(seconds: float) -> Middleware:
    """Middleware that reads the body before the handler runs; errors as for ``read_body``.

    Its place is behind all that refuses by address, key or signature: nobody unknown is waited for.
    """

    @web.middleware
    async def body_deadline(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.can_read_body:
            await read_body(request, seconds)
        return await handler(request)

    return body_deadline


def set_connection_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """For ``header_signal``: some answers end their connection, and say so.

    Those to a late or too large body (RFC 9110 section 15.5.9), and the last one that a connection may have. aiohttp
    drops what still comes in for ``lingering_time``, so that the client gets to see the answer, then closes. An answer
    that refuses a compressed body says what is possible (RFC 9110 section 15.5.16).
    """
    if request.get(LAST):
        response.force_close()
        response.headers[hdrs.CONNECTION] = "close"  # aiohttp has filled it in before this signal
    if response.status == UnsupportedMediaType.status:
        response.headers[hdrs.ACCEPT_ENCODING] = "identity"
