"""Accepts connections: applies the connection limits, reads the PROXY header and does the TLS handshake.

``ConnectionGate`` is the first protocol of each connection. It counts the connection, reads the PROXY header, does the
TLS handshake, and hands over to HTTP. The header and the handshake each have a deadline, so that an unfinished
connection counts no longer than one that never sends a request. Any end of a connection releases its slot.

* MAX_CONNECTIONS and MAX_CONNECTIONS_PER_ADDRESS: connections above the limits are closed at once, without a response.
  Unix sockets and trusted proxies, which bring many clients, count in the total only; IPv6 addresses count by /64.
* PROXY_PROTOCOL: only trusted peers may connect, and each connection starts with a header. The source in the header
  counts as the peer from then on, for the limits too (so ``X-Forwarded-For`` is used only if that source is a trusted
  proxy itself). With a header without a source (UNKNOWN, UNSPEC, a unix socket) the proxy stays the peer, but no
  forwarding header is used, because it would be the client's. LOCAL means that the proxy itself is the client.
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

_FLUSH_SECONDS = 30.0  # at the end of a TLS connection: to send the rest and get the client's close_notify


class Secured(Protocol):
    """Provides the TLS context of the next handshake; after a certificate renewal it is a new context."""

    @property
    def context(self) -> ssl.SSLContext:
        """The context for the next connection."""
        ...


@dataclass(slots=True)
class ConnectionInfo:
    """The data of a connection that is known before its first request.

    Args:
        release: releases the connection's slot; further calls do nothing.
        peer: the source address from the PROXY header, if it had one.
        use_forwarding: False if forwarding headers must be ignored.
        certificate: the subject of the client's certificate, if it sent one.
    """

    release: Callable[[], None]
    peer: str | None = None
    use_forwarding: bool = True
    certificate: str | None = None


@dataclass(slots=True)
class ListenerConfig:
    """The configuration of new connections, and the set of those that are not yet handed over to HTTP.

    Args:
        limiter: the connection limiter.
        timeout: the deadline of the PROXY header, and that of the TLS handshake.
        tls: the TLS contexts for HTTPS; None for plain HTTP.
        proxies: the trusted proxies, which must send PROXY headers; None if the PROXY protocol is off.
        unix_proxies: whether unix-socket peers are such proxies.
        pending: the connections that have not completed the PROXY header or TLS handshake.
    """

    limiter: ConnectionLimiter
    timeout: float
    tls: Secured | None = None
    proxies: NetworkSet | None = None
    unix_proxies: bool = False
    pending: set[ConnectionGate] = field(default_factory=set)

    def close(self) -> None:
        """Abort all connections that are not yet handed over to HTTP."""
        for gate in list(self.pending):
            gate.abort()


class ConnectionGate(asyncio.Protocol):
    """The first protocol of a connection: counts it, reads the PROXY header, does TLS, and hands over to HTTP.

    Args:
        listener: the configuration that all connections share.
        http: creates the HTTP protocol that takes over.
    """

    def __init__(self, listener: ListenerConfig, http: Callable[[ConnectionInfo], asyncio.Protocol]) -> None:
        self._listener, self._http = listener, http
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._timer: asyncio.TimerHandle | None = None
        self._handshake: asyncio.Task[None] | None = None
        self._has_slot = False
        self._group = ""
        self._info = ConnectionInfo(self._release)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection slot, then wait for the PROXY header or go on to TLS or HTTP."""
        listener = self._listener
        self._transport = cast(asyncio.Transport, transport)
        # asyncio then calls pause_writing for any unsent byte, which starts the write deadline (protocol.py).
        self._transport.set_write_buffer_limits(high=0)
        self._has_slot = listener.limiter.acquire()
        if not self._has_slot:
            self.abort()
            return
        peername = transport.get_extra_info("peername")
        peer = unmap(ip_address(peername[0].partition("%")[0])) if isinstance(peername, tuple) and peername else None
        if listener.proxies is None:
            self._admit(peer)
        elif peer in listener.proxies if peer is not None else listener.unix_proxies:
            listener.pending.add(self)
            self._timer = asyncio.get_running_loop().call_later(listener.timeout, self.abort)
        else:
            _log.warning("PROXY protocol: %s is not a trusted proxy", peer)
            self.abort()

    def data_received(self, data: bytes) -> None:
        """Buffer received bytes and parse the PROXY header; bytes after it or after the TLS handshake are passed on."""
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
        self._info.peer = str(header.source) if header.source is not None else None
        self._info.use_forwarding = header.local or header.source is not None
        self._timer.cancel()
        self._timer = None
        self._admit(header.source)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Release the connection's slot."""
        self._release()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()
        self._release()

    def _admit(self, peer: Address | None) -> None:
        group = self._listener.limiter.assign(peer)
        if group is None:
            self.abort()
            return
        self._group = group
        if self._transport is None:
            return
        if self._listener.tls is None:
            self._start_http(self._transport)
        else:
            self._listener.pending.add(self)
            self._handshake = asyncio.get_running_loop().create_task(
                self._start_tls(self._transport, self._listener.tls)
            )

    async def _start_tls(self, transport: asyncio.Transport, tls: Secured) -> None:
        timeout = self._listener.timeout
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                self,
                tls.context,
                server_side=True,
                ssl_handshake_timeout=timeout,
                ssl_shutdown_timeout=_FLUSH_SECONDS,
            )
        except OSError as error:  # includes SSLError and the error that the deadline raises
            _log.debug("no TLS handshake: %s", type(error).__name__)
            self._release()
            return
        except BaseException:
            self._release()
            raise
        if secured is None or secured.is_closing() or not self._has_slot:
            self._release()
            return
        # asyncio's TLS already pauses when the buffer reaches the high mark, so 0 would pause and resume all the time.
        secured.set_write_buffer_limits(high=1, low=0)
        self._info.certificate = subject(secured.get_extra_info("peercert"))
        self._start_http(secured)

    def _start_http(self, transport: asyncio.Transport) -> None:
        self._listener.pending.discard(self)
        protocol = self._http(self._info)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._data:
            protocol.data_received(self._data)
            self._data = b""

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._listener.pending.discard(self)
        if self._has_slot:
            self._has_slot = False
            self._listener.limiter.release(self._group)


def subject(certificate: dict[str, object] | None) -> str | None:
    """Return a certificate's subject as ``CN=name,O=organisation``, most specific first (RFC 4514).

    Args:
        certificate: the result of ``ssl.SSLSocket.getpeercert``.

    Returns:
        None without a certificate.
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
