"""Lua scripts of the Redis Streams adapter. Each runs atomically, so that a worker's death leaves none half done.

A script that fails midway keeps what it has written (Redis's "Scripting with Lua"). So the commands that may fail come
first, and the message is removed last.

The group's pending entries list has the messages that are delivered and not settled, with their consumer, idle time and
delivery count. Messages to be redelivered after a delay stay in that list, under the name of a consumer that no worker
uses, and a sorted set (``delayed``) has the time at which each is due.
"""

from __future__ import annotations

DELAYED_CONSUMER = "waiting"
"""The consumer name of messages that wait for their redelivery."""

MAX_REPLY_ENTRIES = 10_000
"""The approximate maximum number of entries in a reply stream; the oldest are removed if nobody reads it."""

MAX_DEAD_LETTERS = 100_000
"""The approximate maximum number of dead letters; the oldest are removed."""

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
# Returns 0 unless the delivery is still the caller's: it was not delivered again since, not even to the caller.
_CHECK_OWNER = """
local stream, group, consumer, id, count = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
if not pending or pending[2] ~= consumer or pending[4] ~= count then return 0 end
"""

# Claims messages that are due and abandoned ones. Keys: stream, later. Arguments: group, consumer, maximum number of
# messages, idle time in milliseconds after which a message is abandoned, and the cursor of XAUTOCLAIM. Returns the next
# cursor, milliseconds until the next message is due (-1 if none waits), and each message's id, delivery count and
# fields.
CLAIM = (
    _NOW
    + f"""
local stream, later = KEYS[1], KEYS[2]
local group, consumer, max_messages, abandoned, cursor = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local claimed = {{}}
local function take(id)
  local entry = redis.call('XCLAIM', stream, group, consumer, 0, id)[1]
  if not entry then return end  -- the entry was deleted
  claimed[#claimed + 1] = {{id, redis.call('XPENDING', stream, group, id, id, 1)[1][4], entry[2]}}
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', later, '-inf', now, 'LIMIT', 0, max_messages)) do
  redis.call('ZREM', later, id)
  take(id)
end
if #claimed < max_messages then
  -- JUSTID does not raise the delivery count: only a message that this call returns counts as delivered.
  local count = max_messages - #claimed
  local idle = redis.call('XAUTOCLAIM', stream, group, consumer, abandoned, cursor, 'COUNT', count, 'JUSTID')
  cursor = idle[1]
  for _, id in ipairs(idle[2]) do
    if redis.call('ZSCORE', later, id) then
      redis.call('XCLAIM', stream, group, '{DELAYED_CONSUMER}', 0, id, 'JUSTID')
    else
      take(id)
    end
  end
end
local due = redis.call('ZRANGE', later, 0, 0, 'WITHSCORES')[2]
return {{cursor, due and math.max(1, due - now) or -1, claimed}}
"""
)

# Resets a delivery's idle time. Keys: stream. Arguments: group, consumer, id, delivery count. Returns whether the
# delivery still was the caller's.
EXTEND = _CHECK_OWNER + "return #redis.call('XCLAIM', stream, group, consumer, 0, id, 'JUSTID')"

# Schedules a redelivery. Keys: stream, later. Arguments: group, consumer, id, delivery count, delay in milliseconds.
# Has no effect if the delivery is no longer the caller's.
DELAY = (
    _NOW
    + _CHECK_OWNER
    + f"""
redis.call('ZADD', KEYS[2], now + ARGV[5], id)
redis.call('XCLAIM', stream, group, '{DELAYED_CONSUMER}', 0, id, 'JUSTID')
return 1
"""
)

# Writes the answer and the dead letter, and removes the message. Keys: stream, later, results, the answer's own stream,
# dead letters, and optionally the reply stream. Arguments: group, id, milliseconds for which answers are kept, the
# count of the answer's names and values, these, and the names and values of the dead letter, if there is one. Has no
# effect on a settled message.
SETTLE = (
    _NOW
    + f"""
local stream, later, results, answer, dead, reply = unpack(KEYS)
local group, id, keep, size = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if #redis.call('XPENDING', stream, group, id, id, 1) == 0 then return 0 end
local fields, letter = {{unpack(ARGV, 5, 4 + size)}}, {{unpack(ARGV, 5 + size)}}
if redis.call('EXISTS', answer) == 0 then
  redis.call('XADD', results, 'MINID', '~', string.format('%.0f', math.max(0, now - keep)), '*', unpack(fields))
  redis.call('XADD', answer, '*', unpack(fields))
  redis.call('PEXPIRE', answer, keep)
end
if #letter > 0 then redis.call('XADD', dead, 'MAXLEN', '~', {MAX_DEAD_LETTERS}, '*', unpack(letter)) end
if reply then  -- pcall, because an error of the sender's reply stream must not prevent the settling
  redis.pcall('XADD', reply, 'MAXLEN', '~', {MAX_REPLY_ENTRIES}, '*', unpack(fields))
  redis.pcall('PEXPIRE', reply, keep)
end
redis.call('XACK', stream, group, id)
redis.call('XDEL', stream, id)
redis.call('ZREM', later, id)
return 1
"""
)

# Writes a chunk. Keys: reply stream. Arguments: the stream's expiry in milliseconds, the chunk's names and values.
CHUNK = f"""
redis.call('XADD', KEYS[1], 'MAXLEN', '~', {MAX_REPLY_ENTRIES}, '*', unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""

# Returns messages that the consumer did not receive. Keys: stream, later. Arguments: group, consumer, and the ids that
# it works on. Other messages delivered to it are due for redelivery at once, and this delivery of them does not count.
RETURN_UNRECEIVED = (
    _NOW
    + f"""
local stream, later, group, consumer, held = KEYS[1], KEYS[2], ARGV[1], ARGV[2], {{}}
for each = 3, #ARGV do held[ARGV[each]] = true end
for _, pending in ipairs(redis.call('XPENDING', stream, group, '-', '+', 10000, consumer)) do
  local id, count = pending[1], pending[4]
  if not held[id] then
    redis.call('ZADD', later, now, id)
    redis.call('XCLAIM', stream, group, '{DELAYED_CONSUMER}', 0, id, 'RETRYCOUNT', math.max(0, count - 1), 'JUSTID')
  end
end
"""
)

# Deletes consumers without pending messages. Keys: stream. Arguments: group, idle time in milliseconds, and the name of
# a closed consumer. Deletes the closed consumer, and those that were idle for longer.
DELETE_CONSUMERS = """
local stream, group, max_idle, closed = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local consumer = {}
  for each = 1, #fields, 2 do consumer[fields[each]] = fields[each + 1] end
  if consumer.pending == 0 and (consumer.name == closed or consumer.idle > max_idle) then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer.name)
  end
end
"""
