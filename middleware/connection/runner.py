"""The aiohttp runner and server, with deadlines and limits for connections, headers and writes.

A client that sends very slowly or stops reading must not hold a connection or a handler for ever.

The behaviour of aiohttp 3.14.5 (measured; ``tests/middleware/connection/test_runner.py`` tests it):

* Headers: ``keepalive_timeout`` is an absolute limit from the start of a connection, or from when it became idle, until
  the next request's headers are complete. But it must be longer than the idle time of a proxy in front (default 3630
  s), and 0 means no limit at all for a first request.
* Body: a handler that reads waits for ever; only an unread body is cut off, ``lingering_time`` after the response.

``DeadlineRunner`` gives headers a shorter limit of their own, ``body_deadline_middleware`` limits the body. Neither can
interrupt a running handler or a stream: the first closes only connections on which aiohttp waits for a request, the
second is over before the handler starts (``middleware/body.py``).

A client that does not receive its response would hold its handler, its connection and aiohttp's write buffer (64 KiB)
for ever, even after a close. ``ConnectionGate`` sets the transport's buffer limits so that asyncio reports every unsent
byte; a connection on which no byte is sent for ``write_timeout`` is aborted.

Bodies are never decompressed (``auto_decompress=False``) but refused with 415, which rules out decompression bombs.
Requests that the parser accepts but other servers might read differently are refused by
``middleware/connection/framing.py``, before any middleware, and their connections closed.

aiohttp answers ``Expect`` (RFC 9110 section 10.1.1) before any middleware, so that clients with a denied address would
get ``100 Continue``. Here the header is removed, and ``100 Continue`` is sent when a body is about to be read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import ERROR
from multidict import CIMultiDict, CIMultiDictProxy

from middleware.aiohttp_internals import ReplaceableServerRunner, connection_arguments, request_data
from middleware.connection.framing import LINE_ROUND_TARGET, fault, origin_form
from middleware.connection.gate import ConnectionGate, ConnectionInfo, ListenerConfig, Secured
from middleware.connection.limits import ConnectionLimiter
from middleware.connection.protocol import Connection, ConnectionLimits
from middleware.forwarded_header import SOURCES
from middleware.request_keys import CLIENT_CERTIFICATE, CONTINUE, LAST, PEER
from runtime.errors import ServiceError
from runtime.networks import NetworkSet
from runtime.settings import Settings

_FORWARDING = (*SOURCES, "X-Forwarded-Proto", "X-Forwarded-Host")


class _Server(web.Server):
    def __init__(self, limits: ConnectionLimits, listener: ListenerConfig | None, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits, self.listener = limits, listener

    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]  # asyncio needs only a protocol
        if self.listener is None:
            return self._connect(ConnectionInfo(_nothing))
        return ConnectionGate(self.listener, self._connect)

    def _connect(self, info: ConnectionInfo) -> Connection:
        return Connection(self, info, self.limits, **connection_arguments(self))

    def pre_shutdown(self) -> None:
        if self.listener is not None:
            self.listener.close()
        super().pre_shutdown()

    def make_request(
        self, factory: Callable[..., web.BaseRequest], message: RawRequestMessage, *rest: Any
    ) -> web.BaseRequest:
        """Create the application's request from the parsed message and the connection's data."""
        connection: Connection = rest[1]
        if message is ERROR:
            request = factory(message, *rest)
            connection.begin(request)
            return request
        connection.requests += 1
        info = connection.info
        if not message.path.startswith("/"):
            message = origin_form(message)
        expected = message.headers.get(hdrs.EXPECT)
        if expected is not None or not info.use_forwarding:
            headers = CIMultiDict(message.headers)
            for name in (hdrs.EXPECT, *(() if info.use_forwarding else _FORWARDING)):
                headers.popall(name, None)
            message = message._replace(headers=CIMultiDictProxy(headers))
        connection.fault = fault(message, self.limits.max_header_bytes)
        if connection.fault is not None:  # a response never has an unsupported version (RFC 9110 section 2.5)
            message = message._replace(version=HttpVersion11)
        request = factory(message, *rest)
        store = request_data(request)
        # aiohttp's ``get`` takes four calls, and an exception for a missing key; each request calls it a dozen times.
        request.get = store.get  # type: ignore[method-assign]
        store[CONTINUE] = (
            expected is not None and expected.lower() == "100-continue" and message.version == HttpVersion11
        )
        # After an unknown upgrade (h2c), aiohttp loses the bytes that came in the same packet, and so might read the
        # rest of a body as a request. Upgrades are ignored here: the request is answered, and is the connection's last.
        store[LAST] = message.upgrade or connection.requests >= self.limits.keepalive_requests
        store[PEER] = info.peer
        if info.certificate is not None:
            store[CLIENT_CERTIFICATE] = info.certificate
        connection.begin(request)
        return request


def _nothing() -> None:
    pass


class DeadlineRunner(ReplaceableServerRunner):
    """A ``web.AppRunner`` that enforces ``ConnectionLimits`` and a ``ListenerConfig``.

    A connection whose request headers are not complete in time is closed without a response.

    Args:
        app: the application to serve.
        header_timeout: as in ``ConnectionLimits``, like the next four arguments.
        listener: the connection limits, TLS and PROXY protocol; None for none of them.
        kwargs: arguments of ``web.AppRunner``; ``keepalive_timeout`` is the idle time between requests in seconds.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        header_timeout: float,
        write_timeout: float = 60,
        max_header_bytes: int = 8190,
        max_headers: int = 100,
        keepalive_requests: int = 10_000,
        listener: ListenerConfig | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            app,
            auto_decompress=False,
            max_line_size=max_header_bytes - LINE_ROUND_TARGET,
            max_field_size=max_header_bytes,
            max_headers=max_headers,
            **kwargs,
        )
        self.limits = ConnectionLimits(header_timeout, write_timeout, max_header_bytes, max_headers, keepalive_requests)
        self.listener = listener

    @classmethod
    def of(cls, app: web.Application, settings: Settings, tls: Secured | None = None, **kwargs: Any) -> DeadlineRunner:
        """Create the runner from the settings.

        Args:
            app: the application to serve.
            settings: the settings with the limits.
            tls: the TLS contexts for HTTPS; None for plain HTTP.
            kwargs: further arguments of ``web.AppRunner``.
        """
        limiter = ConnectionLimiter(
            settings.max_connections, settings.max_connections_per_address, settings.trusted_proxies
        )
        return cls(
            app,
            header_timeout=settings.header_timeout_seconds,
            keepalive_timeout=settings.keepalive_seconds,
            keepalive_requests=settings.keepalive_requests,
            max_header_bytes=settings.max_header_bytes,
            max_headers=settings.max_headers,
            listener=ListenerConfig(
                limiter,
                settings.header_timeout_seconds,
                tls,
                NetworkSet(settings.trusted_proxies) if settings.proxy_protocol else None,
                settings.trust_unix_peers,
            ),
            **kwargs,
        )

    def replace_server(self, server: web.Server) -> web.Server:
        """Return a server that enforces the limits; it calls the application as aiohttp's server does."""

        def handle(request: web.BaseRequest) -> Coroutine[Any, Any, web.StreamResponse]:
            connection = cast(Connection, request.protocol)
            fault = connection.fault
            return server.request_handler(request) if fault is None else _refuse(fault)  # type: ignore[return-value]

        def make_request(message: RawRequestMessage, *rest: Any) -> web.BaseRequest:
            return replacement.make_request(server.request_factory, message, *rest)

        replacement = _Server(
            self.limits,
            self.listener,
            handle,
            request_factory=make_request,
            handler_cancellation=server.handler_cancellation,
            **connection_arguments(server),
        )
        return replacement


async def _refuse(error: ServiceError) -> web.StreamResponse:
    raise error
