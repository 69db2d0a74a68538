"""aiohttp's HTTP protocol with header and write deadlines, half-close support and rendered errors for invalid input."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import hdrs, web

from middleware.aiohttp_internals import (
    close_idle_at,
    current_request,
    is_handling,
    is_waiting,
    queued_bodies,
    refuse_incomplete_request,
)
from middleware.connection.framing import HEAD_FIELDS, too_large, unreadable
from middleware.connection.gate import ConnectionInfo
from middleware.connection.half_close import HalfClosed
from middleware.request_keys import LAST
from middleware.security_headers import secure
from runtime.error_response import error_response
from runtime.errors import InternalError, ServiceError

_log = logging.getLogger("warmstart.edge")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of one connection.

    Args:
        header_timeout: seconds until a request's headers must be complete, from the start of the connection or from
            the first byte after it was idle.
        write_timeout: seconds in which the client must receive at least one byte of a waiting response.
        max_header_bytes: the limit of the request line and of each header field; for all fields together it is
            ``HEAD_FIELDS`` times that.
        max_headers: the largest number of header fields.
        keepalive_requests: requests after which the connection is closed.
    """

    header_timeout: float
    write_timeout: float = 60
    max_header_bytes: int = 8190
    max_headers: int = 100
    keepalive_requests: int = 10_000


class Connection(web.RequestHandler):
    """aiohttp's connection with deadlines for headers and writing, and with rendered errors for invalid HTTP.

    The header deadline is put into aiohttp's keep-alive timer, whose callback closes a connection only while it waits
    for a request, and which is set again after each response.

    Args:
        manager: the aiohttp server.
        info: the connection's data from the ``ConnectionGate``.
        limits: the connection's limits.
        kwargs: arguments of ``web.RequestHandler``.
    """

    def __init__(self, manager: web.Server, info: ConnectionInfo, limits: ConnectionLimits, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self.info = info
        self.requests = 0
        self.fault: ServiceError | None = None  # why the next request must be refused
        self._request: web.BaseRequest | None = None  # the last request that was read
        self._half_closed: HalfClosed | None = None
        self._limits = limits
        self._head_bytes = 0  # bytes of a request whose headers are incomplete
        self._socket_transport: asyncio.Transport | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    def peername(self) -> Any:  # request.remote, which the log and the audit log show
        """The peer's address: the source in the PROXY header if there was one, else the socket's."""
        if self.info.peer is not None:
            return (self.info.peer, 0)
        return self.transport.get_extra_info("peername") if self.transport is not None else None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the header deadline."""
        super().connection_made(transport)
        self._socket_transport = cast(asyncio.Transport, transport)
        self._set_header_deadline()  # the long idle time is only for connections that have sent a request

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timers and release the connection's slot."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        if self._half_closed is not None:
            self._half_closed.stop()
        self._socket_transport = None
        self.info.release()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes; while headers are incomplete, apply the header deadline and the size limit."""
        super().data_received(data)
        if not is_waiting(self):
            self._head_bytes = 0
        elif data:  # aiohttp still waits: a request has begun and its headers are incomplete
            self._set_header_deadline()
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_FIELDS * self._limits.max_header_bytes:
                refuse_incomplete_request(self, too_large(self._limits.max_header_bytes))

    def begin(self, request: web.BaseRequest) -> None:
        """Record the request that is about to be handled; after a FIN, close the connection after the last one."""
        self._request = request
        if self._half_closed is not None and not queued_bodies(self):
            self._close_after(request)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio uses the result; aiohttp declares none
        """Handle the client's FIN.

        Returns:
            Whether the connection stays open (half-closed): requests are unanswered, all of them are complete, and the
            connection does not use TLS.
        """
        if self._half_closed is not None:  # called again, because reading was resumed
            return True
        request = self._request if is_handling(self) else None
        queued = queued_bodies(self)
        bodies = queued + ([request.content] if request is not None else [])
        if not bodies or not all(body.is_eof() for body in bodies):
            return False
        if self._socket_transport is None or self._socket_transport.get_extra_info("sslcontext") is not None:
            return False
        self._half_closed = HalfClosed(self, self._socket_transport)
        if request is not None and not queued:
            self._close_after(request)
        return True

    def _close_after(self, request: web.BaseRequest) -> None:
        """Close the connection after the response to this request, with ``Connection: close`` if it has not begun."""
        request[LAST] = True
        self.close()

    def pause_writing(self) -> None:
        """Start the write deadline, because the client is not receiving what was written."""
        super().pause_writing()
        self._write_timer = asyncio.get_running_loop().call_later(
            self._limits.write_timeout, self._check_write_progress, self._bytes_sent()
        )

    def resume_writing(self) -> None:
        """Stop the write deadline, because everything was sent."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def _bytes_sent(self) -> int:
        """Return a number that grows with every byte that is sent to the client."""
        request = current_request(self)
        written = request.writer.output_size if request is not None else 0
        return written - (self._socket_transport.get_write_buffer_size() if self._socket_transport is not None else 0)

    def _check_write_progress(self, before: int) -> None:
        if self._socket_transport is None:
            return
        if (now := self._bytes_sent()) == before:
            _log.info("a client stopped reading its response")
            self._socket_transport.abort()
        else:
            self._write_timer = asyncio.get_running_loop().call_later(
                self._limits.write_timeout, self._check_write_progress, now
            )

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer input that is not valid HTTP (no middleware sees it), and errors raised outside all middlewares.

        aiohttp's own answer is plain text that repeats the bytes received, and it logs them with a traceback,
        credentials included.
        """
        error: ServiceError = InternalError("an unexpected error occurred")
        if isinstance(exc, ServiceError):
            error = exc
        elif 400 <= status < 500:
            error = unreadable(exc, self._limits.max_header_bytes, self._limits.max_headers)
        if error.status < 500:
            _log.info("unreadable request from %s: %s", request.remote, type(exc).__name__)
        elif isinstance(exc, ConnectionError):
            _log.info("a client disconnected before its response began")
        else:
            _log.error("a request failed outside all middlewares", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the response has already begun")
        rendered = error_response(error, "problem")
        response = web.Response(status=rendered.status, headers=rendered.headers, body=rendered.body)
        secure(response.headers, https=request.secure)
        response.headers[hdrs.CONNECTION] = "close"
        response.force_close()
        return response

    def _set_header_deadline(self) -> None:
        # An earlier deadline is kept, because further bytes must not extend it.
        close_idle_at(self, asyncio.get_running_loop().time() + self._limits.header_timeout)
