"""One asyncio client of the Redis that is the broker: a call ends in time, and what fails is ``BrokerUnavailable``."""

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

_SECONDS = 5.0
"""That a call may take besides the time it is to wait at the server."""


class RedisConnection:
    """See the module. It mends itself: a call after a failure connects anew.

    Args:
        options: of the queue.

    Raises:
        SettingsError: the URL is not one, or two of the streams are the same.
    """

    def __init__(self, options: QueueOptions) -> None:
        self._options = options
        if len({options.stream, options.results, options.dead}) < 3:
            raise SettingsError("the streams for work, for results and for dead letters must be three")
        try:
            self.client: Any = redis.asyncio.Redis.from_url(
                options.url,
                # ``call`` has a limit. The client's own would lose cancellations, see ``runtime.cancellation``.
                socket_timeout=None,
                socket_connect_timeout=None,
                # Once more where Redis has closed an idle connection, at once; never after a timeout.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
        except ValueError as error:
            raise SettingsError(f"EVENTS_URL: {error}") from None
        self._scripts: dict[str, Any] = {}

    async def call(self, asked: Awaitable[Any], wait_seconds: float = 0.0) -> Any:
        """What Redis answers.

        Args:
            asked: of ``client``.
            wait_seconds: for which the server itself waits before it answers.

        Raises:
            BrokerAway: nothing in time, or an error. What was done is unknown.
        """
        try:
            with reraise_cancellation():
                async with asyncio.timeout(_SECONDS + wait_seconds):
                    return await asked
        except TimeoutError as error:
            raise BrokerUnavailable("Redis: no answer in time") from error
        except (redis.RedisError, OSError, *UNREADABLE) as error:
            raise BrokerUnavailable(f"Redis: {error}") from error

    async def run(self, script: str, keys: Sequence[str], values: Sequence[str | bytes | int]) -> Any:
        """Run a Lua script, as one step (Redis's "Scripting with Lua").

        Raises:
            BrokerAway: see ``call``.
        """
        registered = self._scripts.get(script)
        if registered is None:
            registered = self._scripts[script] = self.client.register_script(script)
        return await self.call(registered(keys=list(keys), args=list(values)))

    async def check(self) -> None:
        """See that Redis is there and lets us in, and that nothing else has the streams' names.

        Raises:
            BrokerAway: it is not there.
            SettingsError: one of the others.
        """
        try:
            for name in (self._options.stream, self._options.results, self._options.dead):
                kind = (await self.call(self.client.type(name))).decode()
                if kind not in ("stream", "none"):
                    raise SettingsError(f"{name} in Redis is a {kind} and not a stream")
        except BrokerUnavailable as error:
            if isinstance(error.__cause__, redis.AuthenticationError | NoPermissionError):
                raise SettingsError(f"EVENTS_URL: {error}") from None
            raise

    async def close(self) -> None:
        """Close its connections. Never raises."""
        try:
            await self.call(self.client.aclose())
        except BrokerUnavailable:  # they are as good as closed
            return
