"""One asyncio client of the Redis that replicas share, which never hangs: a call ends in time or fails.

After a failure Redis is left alone for a moment, so that not every request waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from runtime.cancellation import cancel_and_wait
from runtime.errors import SettingsError

_CONNECTIONS = 8
_SLICES, _SLICE_SECONDS = 10, 0.05  # that a call may take
_PAUSE_SECONDS = 1.0


UNREADABLE = (ValueError, TypeError)
"""What the client's parser raises of an answer that is none of Redis's."""


class RedisUnavailable(Exception):
    """Redis did not answer, in time or at all, or not as it should."""


class SharedRedis:
    """See the module.

    Args:
        url: as the ``redis`` client takes it.
        clock: monotonic time in seconds.

    Raises:
        SettingsError: the URL is not one.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        import redis.asyncio  # a tenth of a second, which only those who use it shall wait
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self._clock = clock
        self._away_until = 0.0
        # Not one connection for each of a crowd: to open them all takes so long that Redis would seem to be away.
        self._turn = asyncio.Semaphore(_CONNECTIONS)
        try:
            self._client = redis.asyncio.Redis.from_url(
                url,
                socket_timeout=None,  # ``_in_time`` has a limit, see also ``runtime.events.queues.redis.connection``
                socket_connect_timeout=None,
                # Once more where Redis has closed an idle connection, at once; never after a timeout.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
        except ValueError as error:
            raise SettingsError(f"REDIS_URL: {error}") from None
        self._faults = (redis.RedisError, OSError, *UNREADABLE)  # a timeout is an OSError
        self._scripts: dict[str, Any] = {}

    async def run(self, script: str, keys: Sequence[str], values: Sequence[str | int | float | bytes] = ()) -> Any:
        """Run a Lua script, as one step (Redis's "Scripting with Lua").

        Raises:
            RedisAway: see the module; what the script did is unknown.
        """
        self._check()
        registered = self._scripts.get(script)
        if registered is None:
            registered = self._scripts[script] = self._client.register_script(script)
        async with self._turn:
            self._check()  # those before us may have found out
            try:
                return await _in_time(registered(keys=list(keys), args=list(values)))
            except self._faults as error:
                self._away_until = self._clock() + _PAUSE_SECONDS
                raise RedisUnavailable(f"Redis: {error}") from error

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    def _check(self) -> None:
        if self._clock() < self._away_until:
            raise RedisUnavailable("Redis did not answer a moment ago")


async def _in_time(call: Coroutine[Any, Any, Any]) -> Any:
    """What a call answers, if it does so within some turns of the event loop that are not too short.

    One long wait would also run out where it is the loop that is held up, with Redis's answer lying there; who can make
    the service busy could so make Redis seem away. In each slice of it the loop has looked at what came in.

    Raises:
        TimeoutError: it does not.
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
        await cancel_and_wait(task)  # nothing of it may be under way afterwards: the caller undoes what it asked for
        raise
    finally:
        task.cancel()
