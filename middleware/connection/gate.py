"""A connection's first moments: is there room for it, who opened it, and is it TLS?

``ConnectionGate`` is the first protocol of each connection. It counts the connection, reads the PROXY header, does the
TLS handshake, and hands over to HTTP; all of it within one deadline each, so that a connection that never gets anywhere
holds its place no longer than one that never sends a request. Whatever ends a connection frees its place.

* MAX_CONNECTIONS and MAX_CONNECTIONS_PER_ADDRESS: who comes above them is closed at once, without an answer. Unix
  sockets and trusted proxies, which bring many clients, are counted in the total only; IPv6 addresses by their /64.
* PROXY_PROTOCOL: only trusted peers may connect, each connection starts with a header, and the source it names is the
  peer for everything behind (so ``X-Forwarded-For`` is believed only if that source is a trusted proxy itself), and is
  counted. A header that names nobody (UNKNOWN, UNSPEC, a unix socket) leaves the proxy as the peer, but then no
  forwarding header is believed: it would be the client's. LOCAL is the proxy itself.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Protocol, cast

from middleware.connection.limits import ConnectionLimiter
from middleware.connection.proxy_protocol import NotProxied, parse
from runtime.networks import Address, NetworkSet, unmap

_log = logging.getLogger("warmstart.edge")

_FLUSH_SECONDS = 30.0  # at the end of a TLS connection, for what is still to be sent and for the client's last word


class Secured(Protocol):
    """Where the TLS context for the next handshake is; a renewed certificate comes as another context."""

    @property
    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        ...


@dataclass(slots=True)
class ConnectionInfo:
    """What is known of a connection before its first request.

    Args:
        free: gives its place back; more calls than one do nothing.
        peer: who opened it, if a PROXY header said so.
        vouched: False where forwarding headers must not be believed.
        certificate: the subject of the client's certificate.
    """

    free: Callable[[], None]
    peer: str | None = None
    vouched: bool = True
    certificate: str | None = None


@dataclass(slots=True)
class ListenerConfig:
    """How connections come in.

    Args:
        places: to count them.
        seconds: deadline of a PROXY header, and of a TLS handshake.
        tls: for HTTPS.
        proxies: whose PROXY headers are believed; None if there are none.
        unix_proxies: whether unix-socket peers are such proxies.
    """

    places: ConnectionLimiter
    seconds: float
    tls: Secured | None = None
    proxies: NetworkSet | None = None
    unix_proxies: bool = False
    waiting: set[ConnectionGate] = field(default_factory=set)

    def close(self) -> None:
        """Close all connections that have not got to HTTP."""
        for gate in list(self.waiting):
            gate.abort()


class ConnectionGate(asyncio.Protocol):
    """See the top of this file.

    Args:
        entrance: what holds for all connections.
        http: makes the protocol that takes over.
    """

    def __init__(self, entrance: ListenerConfig, http: Callable[[ConnectionInfo], asyncio.Protocol]) -> None:
        self._entrance, self._http = entrance, http
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._timer: asyncio.TimerHandle | None = None
        self._handshake: asyncio.Task[None] | None = None
        self._taken = False
        self._group = ""
        self._visit = ConnectionInfo(self._free)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.BaseProtocol``."""
        entrance = self._entrance
        self._transport = cast(asyncio.Transport, transport)
        # Any byte that the client does not take is then told to the protocol: it has a deadline (receiving.py).
        self._transport.set_write_buffer_limits(high=0)
        self._taken = entrance.places.take()
        if not self._taken:
            self.abort()
            return
        peername = transport.get_extra_info("peername")
        peer = unmap(ip_address(peername[0].partition("%")[0])) if isinstance(peername, tuple) and peername else None
        if entrance.proxies is None:
            self._enter(peer)
        elif peer in entrance.proxies if peer is not None else entrance.unix_proxies:
            entrance.waiting.add(self)
            self._timer = asyncio.get_running_loop().call_later(entrance.seconds, self.abort)
        else:
            _log.warning("PROXY protocol: %s is no trusted proxy", peer)
            self.abort()

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``: a PROXY header, or what came right behind a TLS handshake."""
        self._data += data
        if self._timer is None or self._transport is None:
            return
        try:
            header = parse(self._data)
        except NotProxied as error:
            _log.warning("PROXY protocol: %s", error)
            self.abort()
            return
        if header is None:
            return
        self._data = self._data[header.length :]
        self._visit.peer = str(header.source) if header.source is not None else None
        self._visit.vouched = header.local or header.source is not None
        self._timer.cancel()
        self._timer = None
        self._enter(header.source)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See ``asyncio.BaseProtocol``."""
        self._free()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()
        self._free()

    def _enter(self, peer: Address | None) -> None:
        group = self._entrance.places.assign(peer)
        if group is None:
            self.abort()
            return
        self._group = group
        if self._transport is None:
            return
        if self._entrance.tls is None:
            self._hand_over(self._transport)
        else:
            self._entrance.waiting.add(self)
            self._handshake = asyncio.get_running_loop().create_task(self._secure(self._transport, self._entrance.tls))

    async def _secure(self, transport: asyncio.Transport, tls: Secured) -> None:
        seconds = self._entrance.seconds
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                self,
                tls.context,
                server_side=True,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=_FLUSH_SECONDS,
            )
        except OSError as error:  # SSLError is one, and what the deadline raises
            _log.debug("no TLS handshake: %s", type(error).__name__)
            self._free()
            return
        except BaseException:
            self._free()
            raise
        if secured is None or secured.is_closing() or not self._taken:
            self._free()
            return
        secured.set_write_buffer_limits(high=1, low=0)  # asyncio's TLS pauses at the mark already, so 0 would flutter
        self._visit.certificate = subject(secured.get_extra_info("peercert"))
        self._hand_over(secured)

    def _hand_over(self, transport: asyncio.Transport) -> None:
        self._entrance.waiting.discard(self)
        protocol = self._http(self._visit)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._data:
            protocol.data_received(self._data)
            self._data = b""

    def _free(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._entrance.waiting.discard(self)
        if self._taken:
            self._taken = False
            self._entrance.places.free(self._group)


def subject(certificate: dict[str, object] | None) -> str | None:
    """A certificate's subject as ``CN=name,O=organisation``, most specific first (RFC 4514); None without one.

    Args:
        certificate: as ``ssl.SSLSocket.getpeercert`` gives it.
    """
    if not certificate:
        return None
    short = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}
    parts = cast(tuple[tuple[tuple[str, str], ...], ...], certificate.get("subject", ()))
    return ",".join(
        "+".join(f"{short.get(name, name)}={_escaped(value)}" for name, value in part) for part in reversed(parts)
    )


def _escaped(value: str) -> str:
    return "".join(f"\\{c}" if c in ',+"\\<>;=' else c if c.isprintable() else "?" for c in value)
