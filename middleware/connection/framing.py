"""Refuses requests that the HTTP parser accepts but that another server might read differently (request smuggling).

A proxy in front and this service must agree where one request ends and the next begins, and for which host each is (RFC
9112 sections 3, 6 and 11.2). aiohttp's parser (llhttp, strict) refuses nearly everything ambiguous; ``fault`` refuses
the requests that it was found to accept. ``tests/middleware/connection/test_framing.py`` tests both.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, hdrs
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from yarl import URL

from runtime.errors import InvalidRequest, RequestHeaderFieldsTooLarge, ServiceError, UriTooLong

LINE_ROUND_TARGET = len("OPTIONS  HTTP/1.1")
"""Bytes of a request line without its target; the parser's limit applies to the target alone."""

HEAD_FIELDS = 4
"""The limit on all header fields together, in multiples of MAX_HEADER_BYTES (as nginx's large_client_header_buffers);
without it one connection could hold MAX_HEADERS times that much before its first request is complete."""

_LENGTH_DIGITS = 15  # a petabyte; the parser treats lengths near 2^64 as if there were none
_TOO_LARGE = "the header fields are larger than {} bytes together ({} times MAX_HEADER_BYTES)"


def fault(message: RawRequestMessage, max_header_bytes: int) -> ServiceError | None:
    """Return the error for an ambiguous request that the parser accepted; None if the request may be served.

    The connection of a refused request is closed.

    Args:
        message: the parsed request line and headers.
        max_header_bytes: the setting MAX_HEADER_BYTES, the limit of one field.
    """
    headers, path = message.headers, message.path
    if message.version != HttpVersion11 and message.version != HttpVersion10:
        return InvalidRequest("only HTTP/1.1 and HTTP/1.0 are supported")
    coding = headers.get(hdrs.TRANSFER_ENCODING)
    if coding is not None and (coding.lower() != "chunked" or message.version != HttpVersion11):
        # RFC 9112 section 6.1: with HTTP/1.0 the framing is faulty; codings other than chunked are not supported
        return InvalidRequest("Transfer-Encoding can only be chunked, and only with HTTP/1.1")
    length = headers.get(hdrs.CONTENT_LENGTH)
    if length is not None and len(length) > _LENGTH_DIGITS:
        return InvalidRequest(f"Content-Length has more than {_LENGTH_DIGITS} digits")
    if not path.startswith("/") and path != "*":
        return InvalidRequest("the request's target must be a path on this service")
    if "#" in path:
        return InvalidRequest("the request's target has a fragment, which is never sent (RFC 9112 section 3.2)")
    if sum(map(len, chain.from_iterable(message.raw_headers))) > HEAD_FIELDS * max_header_bytes:
        return too_large(max_header_bytes)
    return None


def origin_form(message: RawRequestMessage) -> RawRequestMessage:
    """Replace an absolute target by its path if its authority equals the Host header (RFC 9112 section 3.2.2).

    Servers must accept the absolute form, and must then ignore Host: if the two differ, servers may disagree on the
    host. Such a target is returned unchanged, and ``fault`` refuses it.
    """
    if message.path.startswith("/") or message.method == hdrs.METH_CONNECT:
        return message
    scheme, _, rest = message.path.partition("://")
    authority = message.headers.get(hdrs.HOST, "")
    after = rest[len(authority) :]
    if scheme.lower() not in ("http", "https") or not authority or rest[: len(authority)].lower() != authority.lower():
        return message
    if after and after[0] not in "/?":
        return message
    target = after if after.startswith("/") else "/" + after
    path, _, query = target.partition("?")
    return message._replace(path=target, url=URL.build(path=path, query_string=query, encoded=True))


def too_large(max_header_bytes: int) -> ServiceError:
    """Return the error for header fields whose total size is too large."""
    return RequestHeaderFieldsTooLarge(_TOO_LARGE.format(HEAD_FIELDS * max_header_bytes, HEAD_FIELDS))


def unreadable(error: BaseException | None, max_header_bytes: int, max_headers: int) -> ServiceError:
    """Return the error for a request that the parser refused: the limit that was exceeded, or invalid HTTP/1.1.

    Args:
        error: the parser's exception. Its text repeats bytes of the request, and is not used.
        max_header_bytes: the limit of the request line and of each field, in bytes.
        max_headers: the largest number of fields.
    """
    if isinstance(error, LineTooLong):
        limit: Any = error.args[1]
        if limit == max_header_bytes - LINE_ROUND_TARGET:
            return UriTooLong(f"the request line is longer than {max_header_bytes} bytes (MAX_HEADER_BYTES)")
        return RequestHeaderFieldsTooLarge(f"a header field is longer than {max_header_bytes} bytes (MAX_HEADER_BYTES)")
    if error is not None and error.args == ("Too many headers received",):
        return RequestHeaderFieldsTooLarge(f"there are more than {max_headers} header fields (MAX_HEADERS)")
    return InvalidRequest("this is not a valid HTTP/1.1 request")
