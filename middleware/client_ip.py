"""Determines the client's address of each request; no other module does.

The rules are those of the design's "Client address", after RFC 7239, RFC 9110 section 5.3, nginx's realip module,
uvicorn's proxy-headers and realclientip-go:

1. A peer outside the trusted proxies is the client; every forwarding header it sent is ignored.
2. Behind a trusted peer, the lines of the one configured header are joined in order and walked from the right: the
   first address that is not a trusted proxy is the client; if all are trusted, the leftmost. Without the header, or if
   it is blank, the peer is the client. ``x-real-ip`` carries exactly one address. There is no fallback from one header
   to another.
3. A request with an entry that must be read and is not a definite address is denied; the entry is never skipped,
   because entries left of it come from an unknown sender. Entries left of the client are never read (except in
   ``Forwarded``, which is parsed whole).
4. IPv4-mapped addresses are unmapped and zones dropped before any comparison. A unix-socket peer that sends any
   forwarding header is denied unless unix peers are trusted; without one it is local by construction: 127.0.0.1.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, ip_address

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDict

from middleware.forwarded_header import MAX_CHARS, SOURCES, Headers, MalformedForwarded, Source, elements
from middleware.request_keys import CLIENT_IP, CLIENT_TEXT, PEER, PEER_TRUSTED
from runtime.errors import ClientAddressDenied
from runtime.networks import Address, Network, NetworkSet, unmap

_log = logging.getLogger("warmstart.edge")

_LOCAL = IPv4Address("127.0.0.1")
_MAX_ENTRIES = 1000  # read at most; far above any real chain, and some milliseconds of work at worst
_CACHE_SIZE = 4096  # cached pairs of peer and header value, for values of at most ...
_MAX_CACHED_CHARS = 100  # ... this many characters
_MAX_LOGGED_CHARS = 100  # characters of a denied entry that the log repeats

_OWS = " \t"  # RFC 9110 section 5.6.3; str.strip() would also strip \x0b, \x85, \xa0 ...
_PORT = r"(?P<port>[0-9]{1,5})"
_V6 = r"(?P<address>[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)(?:%[A-Za-z0-9._~-]{1,64})?"  # the zone is dropped (RFC 4007)
_NODES = (
    re.compile(rf"(?P<address>[0-9.]+)(?::{_PORT})?"),
    re.compile(rf"\[{_V6}\](?::{_PORT})?"),
    re.compile(rf"{_V6}(?P<port>)"),
)
_HIDDEN_PORT = re.compile(r":_[0-9A-Za-z._-]+\Z")  # RFC 7239 section 6.3: the port is obfuscated, the address is not


def resolve(
    peer: str | None,
    headers: Headers,
    trusted: Sequence[Network],
    source: Source,
    *,
    trust_unix: bool = False,
) -> Address:
    """Return the client's address, unmapped and without a zone, by the rules at the top of this file.

    Args:
        peer: the socket's peer as text; None or "" for a unix socket.
        headers: the request's headers.
        trusted: the trusted proxies; pass a NetworkSet if there are many or calls are frequent.
        source: the one header that is read.
        trust_unix: treat a unix-socket peer as a trusted proxy.

    Raises:
        ClientAddressDenied: the client cannot be determined. The message is public; the exception's note holds the
            reason and the offending entry, safe for a log.
    """
    proxies = trusted if isinstance(trusted, NetworkSet) else NetworkSet(trusted)
    return _resolve(peer, headers, proxies, source, trust_unix)[0]


def _resolve(
    peer: str | None, headers: Headers, proxies: NetworkSet, source: Source, trust_unix: bool
) -> tuple[Address, bool]:
    """Return the client's address as ``resolve`` does, and whether the peer is a trusted proxy."""
    peer_address = _address(peer) if peer else _LOCAL
    if peer_address in proxies if peer else trust_unix:
        return _client(peer_address, headers, proxies, source), True
    if not peer and any(headers.getall(name, ()) for name in SOURCES):
        raise _denied("a forwarding header from an untrusted unix-socket peer", "")
    return peer_address, False


def _client(peer_address: Address, headers: Headers, proxies: NetworkSet, source: Source) -> Address:
    """Return the client's address behind a trusted peer, whose address is ``peer_address``."""
    lines = headers.getall(source, ())
    if not lines or (len(lines) == 1 and not lines[0].strip(_OWS)):
        return peer_address
    if source == "x-real-ip":
        if len(lines) > 1:
            raise _denied("more than one x-real-ip line", ", ".join(lines))
        return _address(lines[0])

    client = peer_address
    entries = _forwarded(lines) if source == "forwarded" else _listed(lines)
    for count, entry in enumerate(entries):
        if count == _MAX_ENTRIES:
            raise _denied(f"more than {_MAX_ENTRIES} trusted entries", entry)
        client = _address(entry)
        if client not in proxies:
            break
    return client


def _listed(lines: Sequence[str]) -> Iterator[str]:
    """Yield the entries of a comma-separated header from the right, in linear time."""
    for line in reversed(lines):
        yield from reversed(line.split(","))


def _forwarded(lines: Sequence[str]) -> Iterator[str]:
    """Return the ``for`` nodes of a Forwarded header (RFC 7239 section 4) from the right; "" where an element has none.

    A header that is malformed anywhere is denied: otherwise a stray quote at the left could swallow the element that
    our own proxy appended.
    """
    if sum(map(len, lines)) > MAX_CHARS:
        raise _denied(f"Forwarded is longer than {MAX_CHARS} characters", lines[-1])
    try:
        parsed = [element for line in lines for element in elements(line)]
    except MalformedForwarded as error:
        raise _denied(error.reason, error.rest) from None
    return (_HIDDEN_PORT.sub("", element.get("for", "")) for element in reversed(parsed))


def _address(entry: str) -> Address:
    """Parse one entry: ``v4``, ``v4:port``, ``v6``, ``[v6]`` or ``[v6]:port``, a v6 with or without a zone.

    The patterns are ASCII only, and ``ip_address`` refuses octal-looking octets, short forms (``127.1``) and integers.
    """
    text = entry.strip(_OWS)
    for pattern in _NODES:
        node = pattern.fullmatch(text)
        if node is None or int(node["port"] or 0) > 65_535:
            continue
        try:
            address = unmap(ip_address(node["address"]))
        except ValueError:
            break
        if address.is_unspecified:
            raise _denied("an unspecified address", entry)
        return address
    raise _denied("not an address", entry)


def _denied(reason: str, entry: str) -> ClientAddressDenied:
    """Return the error with a note for the log, in which line breaks and control characters are escaped."""
    error = ClientAddressDenied("The client's address could not be determined.")
    error.add_note(f"{reason}: {entry[:_MAX_LOGGED_CHARS]!a}")
    return error


def peer_of(request: web.Request) -> str | None:
    """Return the peer's host from a PROXY header (``PEER``) or the socket; None for a unix socket.

    A missing peername alone does not mean a unix socket: a TCP connection that is already closed may have none, and
    would be taken for a local one.

    Raises:
        ClientAddressDenied: the connection is not a unix socket and has no peer address.
    """
    proxied: str | None = request.get(PEER)
    if proxied is not None:
        return proxied
    transport = request.transport
    peername = transport.get_extra_info("peername") if transport is not None else None
    if isinstance(peername, (tuple, list)) and peername and peername[0]:
        return str(peername[0])
    connection = transport.get_extra_info("socket") if transport is not None else None
    if connection is not None and connection.family == getattr(socket, "AF_UNIX", None):
        return None
    raise _denied("the connection has no peer", str(peername))


def client_ip_middleware(trusted: Sequence[Network], source: Source, trust_unix: bool = False) -> Middleware:
    """Return the middleware that sets ``CLIENT_IP``, ``CLIENT_TEXT``, ``PEER`` and ``PEER_TRUSTED``.

    It raises ClientAddressDenied if the client cannot be determined.

    The arguments are those of ``resolve``. Denied requests are logged.

    Raises:
        ValueError: ``source`` is not in ``SOURCES``.
    """
    if source not in SOURCES:
        raise ValueError(f"the client address source is one of {', '.join(SOURCES)}, not {source!r}")
    proxies = NetworkSet(trusted)

    @lru_cache(_CACHE_SIZE)  # the same few proxies and clients recur; denials raise and are not cached
    def resolve_cached(peer: str, line: str | None) -> tuple[Address, str, bool]:
        headers = CIMultiDict[str]() if line is None else CIMultiDict([(source, line)])
        client, peer_trusted = _resolve(peer, headers, proxies, source, trust_unix)
        return client, str(client), peer_trusted

    @web.middleware
    async def client_ip(request: web.Request, handler: Handler) -> web.StreamResponse:
        peer: str | None = None
        try:
            peer = request[PEER] = peer_of(request)
            lines = request.headers.getall(source, ())
            if not peer or len(lines) > 1 or (lines and len(lines[0]) > _MAX_CACHED_CHARS):
                client, peer_trusted = _resolve(peer, request.headers, proxies, source, trust_unix)
                text = str(client)
            else:
                client, text, peer_trusted = resolve_cached(peer, lines[0] if lines else None)
            request[CLIENT_IP], request[CLIENT_TEXT], request[PEER_TRUSTED] = client, text, peer_trusted
        except ClientAddressDenied as error:
            _log.warning("client address denied: peer %a: %s", peer, "; ".join(error.__notes__))
            raise
        return await handler(request)

    return client_ip
