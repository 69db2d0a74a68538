"""An asyncio client of the Redis that replicas share; every call succeeds or fails within a time limit.

After a failure, calls fail at once for a second, so that not every request waits for an unavailable Redis.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from runtime.backoff import FailurePause
from runtime.cancellation import cancel_and_wait
from runtime.errors import SettingsError

_CONNECTIONS = 8
_SLICES, _SLICE_SECONDS = 10, 0.05  # a call's time limit, split into slices

UNREADABLE = (ValueError, TypeError)
"""Exceptions of the client's parser for a reply that is not valid in Redis's protocol."""


class RedisUnavailable(Exception):
    """Redis did not reply in time, or its reply was an error or not valid."""


class SharedRedis:
    """Runs Lua scripts in Redis with a time limit and at most eight connections. It connects on the first use.

    Args:
        url: the Redis URL, as the ``redis`` client accepts it.
        clock: returns monotonic time in seconds.

    Raises:
        SettingsError: the URL is not valid.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        import redis.asyncio  # takes 0.1 s, so only processes that use Redis import it
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self._pause = FailurePause(clock=clock)
        # Opening a connection for each of many concurrent calls takes so long that Redis would seem unavailable.
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        try:
            self._client = redis.asyncio.Redis.from_url(
                url,
                socket_timeout=None,  # ``_with_time_limit`` sets it; so in ``events.queues.redis.connection``
                socket_connect_timeout=None,
                # Retry once, without delay, where Redis has closed an idle connection; never after a timeout.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
        except ValueError as error:
            raise SettingsError(f"REDIS_URL: {error}") from None
        self._errors = (redis.RedisError, OSError, *UNREADABLE)  # a timeout is an OSError
        self._scripts: dict[str, Any] = {}

    async def run(self, script: str, keys: Sequence[str], values: Sequence[str | int | float | bytes] = ()) -> Any:
        """Run a Lua script, which Redis executes atomically (Redis's "Scripting with Lua").

        Args:
            script: the script's text; it is registered on its first use.
            keys: the script's ``KEYS``.
            values: the script's ``ARGV``.

        Returns:
            The script's result, as the ``redis`` client decodes it.

        Raises:
            RedisUnavailable: the call failed or was not tried; whether the script ran is unknown.
        """
        self._check()
        registered = self._scripts.get(script)
        if registered is None:
            registered = self._scripts[script] = self._client.register_script(script)
        async with self._slots:
            self._check()  # a call that ran while this one waited may have failed
            try:
                return await _with_time_limit(registered(keys=list(keys), args=list(values)))
            except self._errors as error:
                self._pause.start()
                raise RedisUnavailable(f"Redis: {error}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _check(self) -> None:
        if self._pause.active:
            raise RedisUnavailable("Redis did not answer less than a second ago")


async def _with_time_limit(call: Coroutine[Any, Any, Any]) -> Any:
    """Return a call's result if it comes within ten time slices of the event loop.

    One long timeout would also expire where the event loop is blocked while Redis's reply is already there, so a client
    that keeps the service busy could make Redis seem unavailable. In each slice the loop has read its input.

    Raises:
        TimeoutError: there was no result in time.
    """
    task = asyncio.create_task(call)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # the caller may have been cancelled
    try:
        for _ in range(_SLICES):
            await asyncio.wait({task}, timeout=_SLICE_SECONDS)
            if task.done():
                return task.result()
        raise TimeoutError(f"no answer within {_SLICES * _SLICE_SECONDS:g} s")
    except asyncio.CancelledError:
        await cancel_and_wait(task)  # the caller undoes the call's effect, so none of it may still be running
        raise
    finally:
        task.cancel()
