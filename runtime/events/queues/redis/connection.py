"""An asyncio Redis client for the broker: calls have timeouts, and failures are raised as ``BrokerUnavailable``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError

from runtime.cancellation import reraise_cancellation
from runtime.errors import SettingsError
from runtime.events.queues.base import BrokerUnavailable, QueueOptions
from runtime.storage.redis import UNREADABLE

_MAX_CONNECTIONS = 100
"""The maximum number of connections; further calls wait for one."""

_SECONDS = 5.0
"""The timeout of a call, added to the time that the server itself is asked to wait."""


class RedisConnection:
    """A Redis client with timeouts. It reconnects by itself: the call after a failure opens a new connection.

    Args:
        options: the queue's options.

    Raises:
        SettingsError: the URL is invalid, or two of the streams have the same name.
    """

    def __init__(self, options: QueueOptions) -> None:
        self._options = options
        if len({options.stream, options.results, options.dead}) < 3:
            raise SettingsError("stream, results and dead: they must be three different streams")
        try:
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                options.url,
                max_connections=_MAX_CONNECTIONS,
                # ``call`` has a timeout. The client's own would lose cancellations, see ``runtime.cancellation``.
                timeout=None,
                socket_timeout=None,
                socket_connect_timeout=None,
                # Retry once, at once, in case Redis has closed an idle connection; never after a timeout.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
            self.client: Any = redis.asyncio.Redis.from_pool(pool)
        except ValueError as error:
            raise SettingsError(f"EVENTS_URL: {error}") from None
        self._scripts: dict[str, Any] = {}

    async def call(self, call: Awaitable[Any], wait_seconds: float = 0.0) -> Any:
        """Await a call of the client, with a timeout.

        Args:
            call: the awaitable of a call of ``client``.
            wait_seconds: how long the server itself waits before it answers.

        Returns:
            Redis's answer.

        Raises:
            BrokerUnavailable: there was no answer in time, or an error. Whether the command was executed is unknown.
        """
        try:
            with reraise_cancellation():
                async with asyncio.timeout(_SECONDS + wait_seconds):
                    return await call
        except TimeoutError as error:
            raise BrokerUnavailable("Redis: no answer in time") from error
        except (redis.RedisError, OSError, *UNREADABLE) as error:
            raise BrokerUnavailable(f"Redis: {error}") from error

    async def run(self, script: str, keys: Sequence[str], values: Sequence[str | bytes | int]) -> Any:
        """Run a Lua script atomically (Redis's "Scripting with Lua").

        Raises:
            BrokerUnavailable: see ``call``.
        """
        registered = self._scripts.get(script)
        if registered is None:
            registered = self._scripts[script] = self.client.register_script(script)
        return await self.call(registered(keys=list(keys), args=list(values)))

    async def check(self) -> None:
        """Check that Redis is reachable, accepts the credentials, and has no other keys with the streams' names."""
        try:
            for name in (self._options.stream, self._options.results, self._options.dead):
                kind = (await self.call(self.client.type(name))).decode()
                if kind not in ("stream", "none"):
                    raise SettingsError(f"the Redis key {name} is not a stream but a {kind}; choose another name")
        except BrokerUnavailable as error:
            if isinstance(error.__cause__, redis.AuthenticationError | NoPermissionError):
                raise SettingsError(f"EVENTS_URL: {error}") from None
            raise

    async def close(self) -> None:
        """Close the connections. Never raises."""
        try:
            await self.call(self.client.aclose())
        except BrokerUnavailable:  # the connections are unusable anyway
            return
