"""Cached responses in Redis, shared by all replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from runtime.errors import SettingsError
from runtime.response_cache.store import OVERHEAD, Size, Store, StoreFailed, cost

PREFIX = "{warmstart:answers:1}"
"""Prefix of the key names. The number is the format version; the braces keep all keys on one node of a cluster."""

_TIMEOUT_SECONDS = 0.25
_PARTS = ("values", "models", "created", "used", "state")

# ``values`` and ``models`` are hashes by key; ``created`` and ``used`` are sorted sets (by Unix time, and by a counter
# that grows with every use); ``state`` holds the sum of bytes and that counter. A script runs atomically (Redis's
# "Scripting with Lua"). If Redis itself evicts one of the five, incomplete entries are removed when next accessed.
_COMMON = f"""
local values, models, created, used, state = unpack(KEYS)
local function drop(key)
  if redis.call('HEXISTS', values, key) == 1 then
    redis.call('HINCRBY', state, 'bytes', -redis.call('HSTRLEN', values, key) - {OVERHEAD})
  end
  redis.call('HDEL', values, key)
  redis.call('HDEL', models, key)
  redis.call('ZREM', created, key)
  redis.call('ZREM', used, key)
end
local function expire(oldest)
  local removed = redis.call('ZRANGEBYSCORE', created, '-inf', oldest)
  for _, key in ipairs(removed) do drop(key) end
  return #removed
end
local function touch(key)
  redis.call('ZADD', used, redis.call('HINCRBY', state, 'uses', 1), key)
end
"""
_GET = (
    _COMMON
    + """
local oldest = tonumber(ARGV[1])
local function get(key)
  local since = redis.call('ZSCORE', created, key)
  if not since or tonumber(since) <= oldest then return false end
  local value = redis.call('HGET', values, key)
  if value then touch(key) else drop(key) end
  return value
end
local found = {}
for i = 2, #ARGV do found[i - 1] = get(ARGV[i]) end
return found
"""
)
_PUT = (
    _COMMON
    + f"""
local model, now, ttl, limit = unpack(ARGV, 1, 4)
local expired = expire(tonumber(now) - tonumber(ttl))
local evicted = 0
local function put(key, value)
  drop(key)
  redis.call('HSET', values, key, value)
  redis.call('HSET', models, key, model)
  redis.call('ZADD', created, now, key)
  touch(key)
  local bytes = redis.call('HINCRBY', state, 'bytes', #value + {OVERHEAD})
  while bytes > tonumber(limit) and redis.call('ZCARD', used) > 1 do
    drop(redis.call('ZRANGE', used, 0, 0)[1])
    evicted = evicted + 1
    bytes = tonumber(redis.call('HGET', state, 'bytes'))
  end
  if redis.call('ZCARD', used) == 1 then redis.call('HSET', state, 'bytes', #value + {OVERHEAD}) end
end
for i = 5, #ARGV, 2 do put(ARGV[i], ARGV[i + 1]) end
for _, name in ipairs(KEYS) do redis.call('PEXPIRE', name, math.ceil(tonumber(ttl) * 1000)) end
return {{expired, evicted}}
"""
)
_REMOVE = (
    _COMMON
    + """
local prefix, any, model = ARGV[1], ARGV[2] == '1', ARGV[3]
local removed = 0
for _, key in ipairs(redis.call('HKEYS', values)) do
  if key:sub(1, #prefix) == prefix and (any or redis.call('HGET', models, key) == model) then
    drop(key)
    removed = removed + 1
  end
end
return removed
"""
)
_SIZE = (
    _COMMON
    + """
local expired = expire(ARGV[1])
return {expired, redis.call('HLEN', values), tonumber(redis.call('HGET', state, 'bytes') or 0)}
"""
)


class RedisStore(Store):
    """A ``Store`` in Redis; each method is one call of a script. Redis expires all of it once nothing was stored for
    ``ttl_seconds``.

    Args:
        url: the Redis URL, as the ``redis`` client accepts it.
        limit_bytes: as for ``Store``, and so is ``ttl_seconds``.
        clock: returns Unix time in seconds; replicas should agree on it.
        prefix: the prefix of the key names in Redis.

    Raises:
        SettingsError: the URL is not valid.
    """

    name = "redis"
    blocking = True

    def __init__(
        self, url: str, limit_bytes: int, ttl_seconds: float, clock: Callable[[], float], prefix: str = PREFIX
    ) -> None:
        super().__init__(limit_bytes, ttl_seconds, clock)
        self._keys = [f"{prefix}:{part}" for part in _PARTS]
        try:
            self._client = redis.Redis.from_url(
                url,
                socket_timeout=_TIMEOUT_SECONDS,
                socket_connect_timeout=_TIMEOUT_SECONDS,
                # Retry once, without delay, where Redis has closed an idle connection; never after a timeout.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
        except ValueError as error:
            raise SettingsError(f"REDIS_URL: {error}") from None
        self._scripts = {text: self._client.register_script(text) for text in (_GET, _PUT, _REMOVE, _SIZE)}

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values that have not expired, and mark them as most recently used."""
        values: list[bytes | None] = self._do(_GET, self._clock() - self._ttl, *keys)
        return values

    def put_many(self, model: str, values: Mapping[str, bytes]) -> None:
        """Store values, and evict the least recently used ones that have no room."""
        fitting = [part for key, value in values.items() if cost(value) <= self._limit for part in (key, value)]
        if not fitting:
            return
        expired, evicted = self._do(_PUT, model, self._clock(), self._ttl, self._limit, *fitting)
        self._count(expired=expired, evicted=evicted)

    def remove(self, *, model: str | None = None, prefix: str = "") -> int:
        """Remove the values that match, and return how many there were."""
        return int(self._do(_REMOVE, prefix, int(model is None), model or ""))

    def size(self) -> Size:
        """Return the number of entries and their bytes."""
        expired, entries, size = self._do(_SIZE, self._clock() - self._ttl)
        self._count(expired=expired)
        return Size(entries, size)

    def close(self) -> None:
        """Close the connections; the entries stay in Redis."""
        self._client.close()

    def _do(self, script: str, *values: Any) -> Any:
        try:
            try:
                return self._scripts[script](keys=self._keys, args=values)
            except redis.ResponseError as error:
                if "WRONGTYPE" not in str(error):
                    raise
                # One of the five keys was overwritten with a value of another type.
                self._client.unlink(*self._keys)
                with self._lock:
                    self.counters.damaged += 1
                return self._scripts[script](keys=self._keys, args=values)
        except (redis.RedisError, OSError) as error:
            raise StoreFailed(f"Redis: {error}") from error
