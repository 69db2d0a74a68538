"""A NATS connection that reconnects on the next use, buffers nothing while it is broken, and has timeouts on all calls.

The client library's own reconnecting is off: while disconnected it would accept messages that may never be sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from runtime.backoff import FailurePause
from runtime.cancellation import reraise_cancellation
from runtime.errors import SettingsError
from runtime.events.queues.base import BrokerUnavailable

_log = logging.getLogger("warmstart.events")

REQUEST_SECONDS = 5.0
_CONNECT_SECONDS, _CLOSE_SECONDS = 5.0, 2.0
_PING_SECONDS, _PINGS_MISSED = 5, 2  # after these the server counts as unreachable


class NatsConnection:
    """A NATS connection that reconnects when it is next used.

    Args:
        url: ``nats://`` or ``tls://``, with ``user:password@`` or ``token@`` if the server requires credentials;
            further servers of the same cluster follow after commas.

    Raises:
        SettingsError: the URL is invalid.
    """

    def __init__(self, url: str) -> None:
        parts = [_parse(one) for one in url.split(",")]
        self._servers = [f"{part.scheme}://{part.netloc.rpartition('@')[2]}" for part in parts]
        self._tls = any(part.scheme == "tls" for part in parts)
        # Not in the servers' addresses, which the library quotes in its errors and does not percent-decode.
        self._credentials = _credentials(parts)
        self._client: Client | None = None
        self._closed = False
        self._connect_lock = asyncio.Lock()
        self._pause = FailurePause()

    async def client(self) -> Client:
        """Return the connected client; connect if necessary.

        Raises:
            BrokerUnavailable: there is no connection, and none can be opened now.
        """
        try:
            return await self._connected()
        except SettingsError as error:  # the settings were valid at the start and may be again
            raise BrokerUnavailable(str(error)) from None

    async def open(self) -> None:
        """Connect.

        Raises:
            BrokerUnavailable: see ``client``.
            SettingsError: the server refuses the credentials, or has no TLS although the URL requires it.
        """
        self._closed = False
        await self._connected()

    async def _connected(self) -> Client:
        async with self._connect_lock:
            if self._closed:
                raise BrokerUnavailable("the connection to NATS is closed")
            if self._client is None or self._client.is_closed:
                if self._pause.active:  # an earlier caller failed to connect
                    raise BrokerUnavailable("NATS did not answer less than a second ago")
                try:
                    self._client = await self._connect()
                except BrokerUnavailable:
                    self._pause.start()
                    raise
            return self._client

    async def max_body_bytes(self, headers: Mapping[str, str]) -> int:
        """Return the bytes that are left for the body of a message with these headers.

        Raises:
            BrokerUnavailable: see ``client``.
        """
        lines = sum(len(name) + len(value.encode()) + 4 for name, value in headers.items())
        return (await self.client()).max_payload - lines - len("NATS/1.0\r\n\r\n")

    async def jetstream(self) -> JetStreamContext:
        """Return the JetStream context, for streams and consumers; use it within ``broker_errors``.

        Raises:
            BrokerUnavailable: see ``client``.
        """
        return (await self.client()).jetstream(timeout=REQUEST_SECONDS)

    async def request(self, subject: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Msg:
        """Send a message and return its reply.

        Raises:
            BrokerUnavailable: there was no reply in time; whether the server received the message is unknown.
        """
        client = await self.client()
        with broker_errors():
            return await client.request(subject, body, timeout=REQUEST_SECONDS, headers=headers)

    async def publish(self, subject: str, body: bytes, headers: dict[str, str]) -> None:
        """Send a message without confirmation.

        Raises:
            BrokerUnavailable: the message was not sent.
        """
        client = await self.client()
        with broker_errors():
            await client.publish(subject, body, headers=headers)

    async def subscribe(self, subject: str, callback: Callable[[Msg], Awaitable[None]] | None = None) -> Subscription:
        """Subscribe to a subject, for as long as this connection lasts.

        Raises:
            BrokerUnavailable: see ``client``.
        """
        client = await self.client()
        with broker_errors():
            return await client.subscribe(subject, cb=callback)

    async def close(self) -> None:
        """Disconnect, until the next ``open``. Never raises."""
        self._closed = True
        if self._client is not None:
            await _close(self._client)

    async def _connect(self) -> Client:
        errors: list[Exception] = []

        async def note(error: Exception) -> None:
            errors[:] = [error]
            _log.debug("NATS: %s", error)

        client = _Client(self._tls)
        try:
            with reraise_cancellation():
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await client.connect(
                        self._servers,
                        name="warmstart",
                        error_cb=note,
                        closed_cb=client.on_closed,
                        allow_reconnect=False,
                        max_reconnect_attempts=1,
                        reconnect_time_wait=0,
                        ping_interval=_PING_SECONDS,
                        max_outstanding_pings=_PINGS_MISSED,
                        flush_timeout=REQUEST_SECONDS,
                        **self._credentials,
                    )
        except (nats.errors.Error, OSError) as error:  # a timeout is an OSError
            await _close(client)
            if "authorization" in str(error).lower():
                raise SettingsError("EVENTS_URL: the NATS server refuses these credentials") from None
            raise BrokerUnavailable(
                f"cannot connect to NATS: {errors[0] if errors else error or 'no answer in time'}"
            ) from None
        except BaseException:
            await _close(client)
            raise
        return client


class _Client(Client):
    """The library's client, which also refuses servers without TLS for ``tls://`` and notices closed connections."""

    def __init__(self, tls: bool) -> None:
        super().__init__()
        self._tls_required = tls
        self._closed_event = asyncio.Event()

    async def on_closed(self) -> None:
        """Note that the connection is closed."""
        self._closed_event.set()

    async def request(self, *args: Any, **options: Any) -> Msg:
        """Send a request; unlike the library's method, fail when the connection closes while waiting for the reply."""
        call = asyncio.create_task(super().request(*args, **options))
        on_closed = asyncio.create_task(self._closed_event.wait())
        try:
            await asyncio.wait((call, on_closed), return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise nats.errors.ConnectionClosedError
            return call.result()
        except nats.errors.TimeoutError:
            # In a task of its own: a cancelled flush breaks the library's reading of later replies.
            await asyncio.shield(asyncio.create_task(check(self)))
            raise
        finally:
            call.cancel()
            on_closed.cancel()

    def _connect_command(self) -> bytes:  # called just before the credentials are sent
        if self._tls_required and not self._server_info.get("tls_required"):
            raise SettingsError("EVENTS_URL: tls:// requires TLS, which the NATS server does not offer")
        return super()._connect_command()


@contextmanager
def broker_errors() -> Iterator[None]:
    """Raise the library's errors as ``BrokerUnavailable``."""
    try:
        with reraise_cancellation():
            yield
    except (nats.errors.Error, OSError) as error:
        raise BrokerUnavailable(f"NATS: {str(error).removeprefix('nats: ') or type(error).__name__}") from error


async def check(client: Client) -> None:
    """Close the connection if it does not answer a ping; a slow stream on a working connection is no reason to."""
    try:
        await client.flush(timeout=int(_CLOSE_SECONDS))
    except Exception:  # the library raises many types while it closes
        await _close(client)


async def _close(client: Client) -> None:
    with suppress(Exception):  # closing a broken connection may raise anything
        async with asyncio.timeout(_CLOSE_SECONDS):
            await client.close()


def _parse(url: str) -> SplitResult:
    try:
        part = urlsplit(url)
        wrong = part.scheme not in ("nats", "tls") or not part.hostname or part.port == 0
    except ValueError:
        wrong = True
    if wrong or part.path.strip("/") or part.query or part.fragment:
        raise SettingsError(
            "EVENTS_URL: it must be nats://host:4222 or tls://user:password@host:4222, with further servers "
            "after commas; percent-encode special characters of a password"
        )
    return part


def _credentials(parts: list[SplitResult]) -> dict[str, Any]:
    for part in parts:
        if part.username is not None and part.password is None:
            return {"token": unquote(part.username)}
        if part.username is not None and part.password is not None:
            return {"user": unquote(part.username), "password": unquote(part.password)}
    return {}
