"""Determines the scheme and authority that the client used in its request; no other module does.

* The authority is the ``Host`` header (RFC 9112 section 3.2), which must occur once and be a host with or without a
  port. Only HTTP/1.0 requests may omit it; the authority is then "".
* With FORWARDED_ORIGIN, and from a trusted peer only, ``X-Forwarded-Proto`` and ``X-Forwarded-Host`` override it, or
  ``proto`` and ``host`` of ``Forwarded`` (RFC 7239 sections 5.3 and 5.4) if CLIENT_IP_HEADER is ``forwarded``. They are
  not read from other peers. Of several values the rightmost counts, because the peer wrote it; values left of it may
  come from a client. So a proxy behind another must pass on the outer one's values, or set them itself.
* A value that must be read and is malformed is refused with 400, never skipped: the next value could be forged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final

from aiohttp import HttpVersion10, hdrs, web
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDict, istr

from middleware.forwarded_header import MAX_CHARS, Headers, MalformedForwarded, Source, elements
from middleware.request_keys import ORIGIN, PEER_TRUSTED, Origin
from runtime.errors import InvalidRequest

_HOST = re.compile(r"(?:[A-Za-z0-9._~-]{1,255}|\[(?P<v6>[0-9A-Fa-f:.]{2,45})\])(?::(?P<port>[0-9]{0,5}))?")
_PROTO, _FORWARDED_HOST = istr("X-Forwarded-Proto"), istr("X-Forwarded-Host")
_NONE: Final[Sequence[str | None]] = (None,)  # stands for the values of a missing header field
_SCHEMES = ("http", "https")
_CACHE_SIZE = 1024  # cached valid combinations of host and forwarding headers, the latter of at most ...
_MAX_CACHED_CHARS = 300  # ... this many characters


def origin(peer_trusted: bool, scheme: str, host: str, headers: Headers, source: Source) -> Origin:
    """Return the scheme and the authority that the client used, by the rules at the top of this file.

    Args:
        peer_trusted: whether the peer's forwarding headers are used.
        scheme: the connection's scheme, ``http`` or ``https``.
        host: the Host header, as ``host_of`` returns it.
        headers: the request's headers.
        source: the setting CLIENT_IP_HEADER, which decides between ``Forwarded`` and ``X-Forwarded-*``.

    Raises:
        InvalidRequest: names the header at fault.
    """
    authority = _authority(host, "Host") if host else ""
    if not peer_trusted:
        return Origin(scheme, authority)
    names = ("Forwarded", "Forwarded") if source == "forwarded" else (_PROTO, _FORWARDED_HOST)
    if source == "forwarded":
        told, named = _last_element(headers.getall("Forwarded", ()))
    else:
        told, named = _last(headers.getall(_PROTO, ())), _last(headers.getall(_FORWARDED_HOST, ()))
    if told is not None:
        scheme = told.lower()
        if scheme not in _SCHEMES:
            raise InvalidRequest(f"{names[0]}: the scheme must be http or https")
    return Origin(scheme, authority if named is None else _authority(named, names[1]))


def host_of(lines: Sequence[str], *, required: bool) -> str:
    """Return the only Host header; "" if it is missing and may be.

    Raises:
        InvalidRequest: there are several, or an empty one, or none although one is required.
    """
    if len(lines) == 1 and lines[0]:
        return lines[0]
    if lines or required:
        raise InvalidRequest(
            "Host: a request must have exactly one Host header, which names a host (RFC 9112 section 3.2)"
        )
    return ""


@lru_cache(_CACHE_SIZE)
def _authority(text: str, name: str) -> str:
    """Validate a host and optional port; return them in lower case, without the colon of an empty port."""
    match = _HOST.fullmatch(text)
    if match is None or int(match["port"] or 0) > 65_535:
        raise InvalidRequest(f"{name}: the value must be a host with or without a port")
    if match["v6"] is not None:
        try:
            IPv6Address(match["v6"])
        except ValueError:
            raise InvalidRequest(f"{name}: the value is not an IPv6 address") from None
    return text.lower().removesuffix(":")


def _last(lines: Sequence[str]) -> str | None:
    """Return the rightmost value of a list; None if there is no line or a single blank one (as in ``client_ip``)."""
    if not lines or (len(lines) == 1 and not lines[0].strip(" \t")):
        return None
    return lines[-1].rpartition(",")[2].strip(" \t")


def _last_element(lines: Sequence[str]) -> tuple[str | None, str | None]:
    """Return ``proto`` and ``host`` of the rightmost ``Forwarded`` element; None for each that is missing."""
    if not lines or (len(lines) == 1 and not lines[0].strip(" \t")):
        return None, None
    if len(lines[-1]) > MAX_CHARS:
        raise InvalidRequest(f"Forwarded: the value is longer than {MAX_CHARS} characters")
    try:
        last = elements(lines[-1])[-1]
    except MalformedForwarded as error:
        raise InvalidRequest(f"Forwarded: {error.reason} (RFC 7239 section 4)") from None
    return last.get("proto"), last.get("host")


def forwarded_middleware(source: Source, *, enabled: bool = False) -> Middleware:
    """Return the middleware that sets ``request[ORIGIN]`` or raises InvalidRequest. It needs ``PEER_TRUSTED``.

    Args:
        source: the setting CLIENT_IP_HEADER, as for ``origin``.
        enabled: the setting FORWARDED_ORIGIN; if False, no forwarding header is read.
    """

    @lru_cache(_CACHE_SIZE)  # the same few hosts recur; refusals raise and are not cached
    def origin_cached(peer_trusted: bool, scheme: str, host: str, proto: str | None, named: str | None) -> Origin:
        lines = ((_PROTO, proto), (_FORWARDED_HOST, named))
        told = CIMultiDict([(name, line) for name, line in lines if line is not None])
        return origin(peer_trusted, scheme, host, told, source)

    @web.middleware
    async def forwarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = request.headers
        lines = headers.getall(hdrs.HOST, ())
        host = lines[0] if len(lines) == 1 else ""
        if not host:  # rare
            host = host_of(lines, required=request.version != HttpVersion10)
        trusted, scheme = enabled and request[PEER_TRUSTED], request.scheme
        protos = headers.getall(_PROTO, _NONE) if trusted else _NONE
        names = headers.getall(_FORWARDED_HOST, _NONE) if trusted else _NONE
        proto, named = protos[0], names[0]
        if source == "forwarded" or len(protos) > 1 or len(names) > 1 or len(f"{proto}{named}") > _MAX_CACHED_CHARS:
            request[ORIGIN] = origin(trusted, scheme, host, headers, source)
        else:
            request[ORIGIN] = origin_cached(trusted, scheme, host, proto, named)
        return await handler(request)

    return forwarded
