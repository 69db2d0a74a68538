"""Reads request bodies: with a deadline and a size limit, without decompression, after sending ``100 Continue``.

The limits of the connection itself are in ``middleware/connection/runner.py``.
"""

from __future__ import annotations

import asyncio
import random

from aiohttp import hdrs, web
from aiohttp.streams import StreamReader
from aiohttp.typedefs import Handler, Middleware

from middleware.access import Access
from middleware.aiohttp_internals import cache_body, cached_body, take_received_body
from middleware.request_keys import CONTINUE, LAST
from runtime.errors import InvalidRequest, PayloadTooLarge, RequestTimeout, UnsupportedMediaType
from runtime.request_headers import check_content_encoding

_SPREAD = 1.2  # random factor on deadlines: hundreds of slow bodies that began together must not all time out at once


async def read_body(request: web.Request, seconds: float) -> bytes:
    """Read and return the whole body; aiohttp caches it, so that later ``request.read()`` and ``.json()`` cost nothing.

    Args:
        request: the request.
        seconds: the deadline in seconds, stretched by a random factor of up to 1.2.

    Raises:
        RequestTimeout: the body was not complete in time; ``set_connection_headers`` then closes the connection.
        PayloadTooLarge: the body is larger than the application's ``client_max_size``; it is not read at all if
            Content-Length says so.
        UnsupportedMediaType: the body is compressed.
        InvalidRequest: the body's framing is broken.
        ConnectionError: the client has disconnected.
    """
    limit = request.client_max_size
    await accept_body(request, limit, "MAX_BODY_BYTES")
    try:
        body = take_received_body(request)
        if body is not None:  # most bodies are already complete, and need no timer
            if len(body) > limit:
                raise _too_large(limit, "MAX_BODY_BYTES")
            cache_body(request, body)
            return body
        async with asyncio.timeout(seconds * random.uniform(1, _SPREAD)):  # noqa: S311
            return await request.read()
    except TimeoutError:
        request[LAST] = True
        raise RequestTimeout(f"The request body did not arrive within {seconds:g} seconds.") from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limit, "MAX_BODY_BYTES") from None
    except web.RequestPayloadError:
        raise InvalidRequest("The request body could not be decoded.") from None


async def accept_body(request: web.Request, limit: int, setting: str) -> None:
    """Ask the client for the body if it waits for that, unless it would be refused.

    Args:
        request: the request, whose body was not read.
        limit: the largest number of bytes.
        setting: the setting that has the limit, for the error message.

    Raises:
        PayloadTooLarge: Content-Length is larger than the limit.
        UnsupportedMediaType: the body is compressed.
    """
    if hdrs.CONTENT_ENCODING in request.headers:
        check_content_encoding(request.headers.getall(hdrs.CONTENT_ENCODING))
    if (request.content_length or 0) > limit:
        request[LAST] = True
        raise _too_large(limit, setting)
    if request.get(CONTINUE):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the final response has not begun


def received_reader(request: web.Request) -> StreamReader:
    """Return a reader of a request's body, also if it was read before, to verify its signature."""
    if (body := cached_body(request)) is None:
        return request.content
    reader = StreamReader(request.protocol, 2**16)
    reader.feed_data(body)
    reader.feed_eof()
    return reader


def _too_large(limit: int, setting: str) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than {limit} bytes ({setting}).")


def body_deadline_middleware(seconds: float, access: Access | None = None) -> Middleware:
    """Return the middleware that reads the body before the handler runs; errors as for ``read_body``.

    It comes after the address, key and signature checks, so that unauthenticated clients cannot make it wait.

    Args:
        seconds: the deadline, as for ``read_body``.
        access: the access rules; their handlers of forms read these themselves. None for no such handlers.
    """

    @web.middleware
    async def body_deadline(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.can_read_body and not _is_form(request, access):
            await read_body(request, seconds)
        return await handler(request)

    return body_deadline


def _is_form(request: web.Request, access: Access | None) -> bool:
    return (
        access is not None
        and request.match_info.handler in access.forms
        and request.content_type == "multipart/form-data"
    )


def set_connection_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Set ``Connection: close`` and ``Accept-Encoding`` where the response needs them (for ``header_signal``).

    The connection is closed after the response to a late or too large body (RFC 9110 section 15.5.9), and after the
    last request that a connection may carry. aiohttp discards incoming bytes for ``lingering_time`` so that the client
    can read the response, then closes. A response that refuses a compressed body names the accepted encoding (RFC 9110
    section 15.5.16).
    """
    if request.get(LAST):
        response.force_close()
        response.headers[hdrs.CONNECTION] = "close"  # aiohttp has set this header before the signal
    if response.status == UnsupportedMediaType.status:
        response.headers[hdrs.ACCEPT_ENCODING] = "identity"
