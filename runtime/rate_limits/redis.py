"""Stores used quotas in Redis, shared by all replicas, with Lua scripts, which Redis runs atomically."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Sequence
from typing import Any

from runtime.rate_limits.gcra import Commit, Decision, LimitsUnavailable, Quota
from runtime.storage.redis import RedisUnavailable, SharedRedis

PREFIX = "warmstart:limits:1"
"""The prefix of keys in Redis, with the format's version. Braces after it keep a client's keys on one cluster node."""

# One hash per client and quota: the level in units (level), the time it was stored (at, in microseconds of Redis's own
# clock, so that replicas' clocks need not agree), and for each reservation a field named by its id, with its units and
# its expiry. A reservation that is not committed by then belongs to a replica that died, and is counted in full. While
# Redis's clock runs backwards, nothing drains.
_COMMON = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function read(key, interval)
  local state, at, fields = {level = 0, reserved = 0, last = now}, now, redis.call('HGETALL', key)
  local ended = 0
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if name == 'level' then state.level = tonumber(value)
    elseif name == 'at' then at = tonumber(value)
    else
      local units, ends = value:match('^(%d+) (%d+)$')
      if tonumber(ends) <= now then
        ended = ended + units
        redis.call('HDEL', key, name)
      else
        state.reserved = state.reserved + units
        state.last = math.max(state.last, tonumber(ends))
      end
    end
  end
  state.level = math.max(0, state.level - math.max(0, now - at) / interval) + ended
  state.changed = ended > 0
  return state
end
local function write(key, state, interval)
  redis.call('HSET', key, 'level', string.format('%.17g', state.level), 'at', string.format('%.0f', now))
  -- until the level has drained, even if every reservation is counted in full
  local last = math.max(state.level * interval, state.last - now) + state.reserved * interval
  redis.call('PEXPIRE', key, math.ceil(last / 1000) + 1)
end
local function available(state, burst) return burst - state.level - state.reserved end
local function admits(state, burst, cost) return cost == 0 or cost <= available(state, burst) + 1e-6 end
local function answer(state, burst, interval, admitted, cost)
  local wait = admitted and 0 or math.min(cost - available(state, burst), state.level) * interval
  return {admitted and 1 or 0, math.max(0, math.floor(available(state, burst) + 1e-6)),
    string.format('%.0f', state.level * interval), string.format('%.0f', wait)}
end
"""
# Arguments for each key: burst, interval in microseconds, cost. Either all costs are counted, or none.
_TAKE = (
    _COMMON
    + """
local states, admitted, answers = {}, {}, {}
local all = true
for i, key in ipairs(KEYS) do
  local burst, interval, cost = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  states[i] = read(key, interval)
  admitted[i] = admits(states[i], burst, cost)
  all = all and admitted[i]
end
for i, key in ipairs(KEYS) do
  local burst, interval, cost = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local state = states[i]
  if all and cost > 0 then
    state.level = state.level + cost
    state.changed = true
  end
  if state.changed then write(key, state, interval) end
  answers[i] = answer(state, burst, interval, admitted[i], cost)
end
return answers
"""
)
# Arguments: burst, interval in microseconds, units, the reservation's id, seconds until it expires.
_RESERVE = (
    _COMMON
    + """
local key, burst, interval, units, id = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
redis.call('HDEL', key, id)  -- if the connection broke before the answer, this is its second time
local state = read(key, interval)
local admitted = admits(state, burst, units)
if admitted then
  local ends = now + math.ceil(tonumber(ARGV[5]) * 1000000)
  redis.call('HSET', key, id, string.format('%d %.0f', units, ends))
  state.reserved = state.reserved + units
  state.last = math.max(state.last, ends)
  state.changed = true
end
if state.changed then write(key, state, interval) end
return answer(state, burst, interval, admitted, units)
"""
)
# Arguments: burst, interval in microseconds, the reservation's id, units used. An expired one was counted already.
_COMMIT = (
    _COMMON
    + """
local key, burst, interval, id = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local reservation = redis.call('HGET', key, id)
local units, ends = string.match(reservation or '0 0', '^(%d+) (%d+)$')
if tonumber(ends) > now then redis.call('HDEL', key, id) end
local state = read(key, interval)
if tonumber(ends) > now then state.level = state.level + math.min(tonumber(ARGV[4]), tonumber(units)) end
write(key, state, interval)
return answer(state, burst, interval, true, 0)
"""
)


class RedisLimits:
    """A ``UsageLimiter`` that stores used quotas in Redis.

    Args:
        redis: the connection, which ``close`` closes.
        reservation_seconds: the lifetime of a reservation in seconds; longer than any request.
        prefix: the prefix of the keys in Redis.
    """

    def __init__(self, redis: SharedRedis, reservation_seconds: float, prefix: str = PREFIX) -> None:
        self._redis = redis
        self._reservation_seconds = reservation_seconds
        self._prefix = prefix
        self._commits: set[asyncio.Task[Decision | None]] = set()

    async def admit(
        self, client: str, requests: Quota | None, tokens: Quota | None
    ) -> tuple[Decision | None, Decision | None]:
        """Count one request, and read the token quota."""
        kinds = (("requests", requests, 1), ("tokens", tokens, 0))
        quotas = [(name, quota, cost) for name, quota, cost in kinds if quota is not None]
        replies = await self._run(
            _TAKE,
            [self._key(client, name) for name, _, _ in quotas],
            [value for _, quota, cost in quotas for value in (quota.burst, 1e6 * quota.interval, cost)],
        )
        decisions = {
            name: _decision(reply, quota, cost) for (name, quota, cost), reply in zip(quotas, replies, strict=True)
        }
        return decisions.get("requests"), decisions.get("tokens")

    async def reserve(self, client: str, quota: Quota, tokens: int) -> tuple[Decision, Commit | None]:
        """Reserve tokens until they are committed. If the call is cancelled, the reservation is released."""
        reservation = secrets.token_hex(8)

        async def commit(used: int) -> Decision | None:
            # Shielded from the request's cancellation: tokens that are not committed would be counted in full.
            task = asyncio.create_task(self._commit(client, quota, reservation, used))
            self._commits.add(task)
            task.add_done_callback(self._commits.discard)
            return await asyncio.shield(task)

        values = (quota.burst, 1e6 * quota.interval, tokens, reservation, self._reservation_seconds)
        try:
            reply = await self._run(_RESERVE, [self._key(client, "tokens")], values)
        except asyncio.CancelledError:
            await commit(0)
            raise
        decision = _decision(reply, quota, tokens)
        return decision, commit if decision.admitted else None

    async def close(self) -> None:
        """Wait for running commits, then close the connections."""
        if self._commits:
            await asyncio.wait(self._commits)
        await self._redis.close()

    def __len__(self) -> int:
        return 0

    async def _commit(self, client: str, quota: Quota, reservation: str, used: int) -> Decision | None:
        values = (quota.burst, 1e6 * quota.interval, reservation, max(0, used))
        try:
            return _decision(await self._run(_COMMIT, [self._key(client, "tokens")], values), quota, 0)
        except LimitsUnavailable:
            return None

    async def _run(self, script: str, keys: Sequence[str], values: Sequence[str | int | float]) -> Any:
        try:
            return await self._redis.run(script, keys, values)
        except RedisUnavailable as error:
            raise LimitsUnavailable(str(error)) from error

    def _key(self, client: str, name: str) -> str:
        return f"{self._prefix}:{{{client}}}:{name}"


def _decision(reply: Any, quota: Quota, cost: int) -> Decision:
    admitted, remaining, reset, wait = map(int, reply)
    retry_after = math.inf if cost > quota.burst else wait / 1e6
    return Decision(bool(admitted), remaining, reset / 1e6, 0.0 if admitted else retry_after)
