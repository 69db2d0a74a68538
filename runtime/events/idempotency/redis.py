"""An idempotency store in Redis, shared by workers on many machines.

Scripts are atomic (Redis's "Scripting with Lua").
"""

from __future__ import annotations

import math
from typing import Any

from runtime.events.idempotency.cancellation import begin_or_release
from runtime.events.idempotency.records import Done, InProgress, Mismatch, RecordsUnavailable, Started
from runtime.events.idempotency.transitions import LAPSED_SECONDS
from runtime.storage.redis import RedisUnavailable, SharedRedis

PREFIX = "warmstart:records:1:"
"""The prefix of the store's keys in Redis. The number is the format's version."""

# One hash per record, with the fields of ``WorkRecord``; times are in milliseconds of Redis's own clock. The key's
# expiry is ``WorkRecord.forget``. After a broken connection the client may run a script twice: the second run finds
# the same holder in the record.
_COMMON = f"""
local key, holder = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local fingerprint, current, lapsed, since, till, result = unpack(
  redis.call('HMGET', key, 'fingerprint', 'holder', 'lapsed', 'since', 'until', 'result'))
lapsed, since, till = tonumber(lapsed or 0), tonumber(since or 0), tonumber(till or 0)
local function lease(milliseconds)
  redis.call('HSET', key, 'since', string.format('%.0f', now), 'until', string.format('%.0f', now + milliseconds))
  redis.call('PEXPIRE', key, string.format('%.0f', milliseconds + {LAPSED_SECONDS * 1000:.0f}))
end
"""
# Arguments: holder, lease in milliseconds, fingerprint.
_BEGIN = (
    _COMMON
    + """
if fingerprint then
  if fingerprint ~= ARGV[3] then return {'mismatch'} end
  if result then return {'done', result} end
  if current ~= holder and current ~= '' then
    if now < since then  -- the clock was set back
      till = now + till - since
      lease(till - now)
    end
    if now < till then return {'in_progress', till - now} end
    lapsed = lapsed + 1
  end
end
redis.call('HSET', key, 'fingerprint', ARGV[3], 'holder', holder, 'lapsed', lapsed)
lease(tonumber(ARGV[2]))
return {'started', lapsed}
"""
)
# Arguments: holder, lease in milliseconds.
_RENEW = (
    _COMMON
    + """
if current ~= holder or result then return 0 end
lease(tonumber(ARGV[2]))
return 1
"""
)
# Arguments: holder, milliseconds for which the result is kept, result.
_COMPLETE = (
    _COMMON
    + """
if current ~= holder then return 0 end
if not result then
  redis.call('HSET', key, 'result', ARGV[3])
  redis.call('PEXPIRE', key, ARGV[2])
end
return 1
"""
)
# Arguments: holder.
_RELEASE = (
    _COMMON
    + """
if current ~= holder or result then return end
if lapsed == 0 then
  redis.call('DEL', key)
else
  redis.call('HSET', key, 'holder', '')
  lease(0)
end
"""
)


class RedisRecords:
    """An idempotency store (``Records``) in Redis.

    Args:
        redis: the Redis client, closed together with the store.
        prefix: the prefix of the keys in Redis.
    """

    def __init__(self, redis: SharedRedis, prefix: str = PREFIX) -> None:
        self._redis = redis
        self._prefix = prefix

    async def begin(
        self, key: str, fingerprint: str, holder: str, seconds: float
    ) -> Started | Done | InProgress | Mismatch:
        """Lease a record if no other worker has the lease (``Records.begin``)."""
        begin = self._run(_BEGIN, key, holder, _milliseconds(seconds), fingerprint)
        state, *rest = await begin_or_release(begin, lambda: self.release(key, holder))
        if state == b"started":
            return Started(int(rest[0]))
        if state == b"done":
            return Done(rest[0])
        return InProgress(int(rest[0]) / 1000) if state == b"in_progress" else Mismatch()

    async def renew(self, key: str, holder: str, seconds: float) -> bool:
        """Extend the lease, and return whether it still was the holder's (``Records.renew``)."""
        return bool(await self._run(_RENEW, key, holder, _milliseconds(seconds)))

    async def complete(self, key: str, holder: str, result: bytes, seconds: float) -> bool:
        """Store the result, and return whether the record still was the holder's (``Records.complete``)."""
        return bool(await self._run(_COMPLETE, key, holder, _milliseconds(seconds), result))

    async def release(self, key: str, holder: str) -> None:
        """Release the lease without a result (``Records.release``)."""
        await self._run(_RELEASE, key, holder)

    async def close(self) -> None:
        """Close the Redis client."""
        await self._redis.close()

    async def _run(self, script: str, key: str, *values: str | int | bytes) -> Any:
        try:
            return await self._redis.run(script, [self._prefix + key], values)
        except RedisUnavailable as error:
            raise RecordsUnavailable(str(error)) from error


def _milliseconds(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))
