"""Lua scripts of the Redis Streams adapter. Each runs as one step (Redis's "Scripting with Lua"), and nobody who dies
can leave half of one behind.

A script that fails midway keeps what it has done. So whatever may fail comes first, and the message goes last.

The group's pending entries list has what was delivered and is not settled, with its consumer, its idle time and how
often it was delivered. What is to be delivered again after a pause stays in that list, under the name of a consumer
that is nobody's, and a sorted set (``later``) has the time at which that is due.
"""

from __future__ import annotations

WAITING = "waiting"
"""The consumer that has what waits for its next delivery."""

LONGEST_REPLY = 10_000
"""Entries, roughly, of a reply stream: of one that nobody reads the first are lost."""

MOST_DEAD = 100_000
"""Dead letters kept, roughly; then the oldest go."""

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
# Whether a delivery is still the caller's: nobody has taken it up since, not even the caller.
_MINE = """
local stream, group, consumer, id, count = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
if not pending or pending[2] ~= consumer or pending[4] ~= count then return 0 end
"""

# Keys: stream, later. Arguments: group, consumer, most, milliseconds after which work is abandoned, and where to go on
# looking for it. Answers where to go on next time, milliseconds until the next is due (-1: nothing waits), and of each
# message its id, how often it was delivered, and its fields.
TAKE = (
    _NOW
    + f"""
local stream, later = KEYS[1], KEYS[2]
local group, consumer, most, abandoned, cursor = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local found = {{}}
local function take(id)
  local entry = redis.call('XCLAIM', stream, group, consumer, 0, id)[1]
  if not entry then return end  -- somebody has deleted it
  found[#found + 1] = {{id, redis.call('XPENDING', stream, group, id, id, 1)[1][4], entry[2]}}
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', later, '-inf', now, 'LIMIT', 0, most)) do
  redis.call('ZREM', later, id)
  take(id)
end
if #found < most then
  -- JUSTID, because only what is given to somebody counts as a delivery.
  local idle = redis.call('XAUTOCLAIM', stream, group, consumer, abandoned, cursor, 'COUNT', most - #found, 'JUSTID')
  cursor = idle[1]
  for _, id in ipairs(idle[2]) do
    if redis.call('ZSCORE', later, id) then
      redis.call('XCLAIM', stream, group, '{WAITING}', 0, id, 'JUSTID')
    else
      take(id)
    end
  end
end
local due = redis.call('ZRANGE', later, 0, 0, 'WITHSCORES')[2]
return {{cursor, due and math.max(1, due - now) or -1, found}}
"""
)

# Keys: stream. Arguments: group, consumer, id, deliveries. Answers whether it still was the caller's.
EXTEND = _MINE + "return #redis.call('XCLAIM', stream, group, consumer, 0, id, 'JUSTID')"

# Keys: stream, later. Arguments: group, consumer, id, deliveries, milliseconds. Of no effect on another's.
POSTPONE = (
    _NOW
    + _MINE
    + f"""
redis.call('ZADD', KEYS[2], now + ARGV[5], id)
redis.call('XCLAIM', stream, group, '{WAITING}', 0, id, 'JUSTID')
return 1
"""
)

# Keys: stream, later, results, the answer's own stream, dead letters, and a reply stream if one is wanted. Arguments:
# group, id, milliseconds for which answers are kept, number of the answer's names and values, these, and then the dead
# letter's, if it is one. Of no effect on what is settled.
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
if #letter > 0 then redis.call('XADD', dead, 'MAXLEN', '~', {MOST_DEAD}, '*', unpack(letter)) end
if reply then  -- its sender's own affair: whatever is wrong with it holds up nothing
  redis.pcall('XADD', reply, 'MAXLEN', '~', {LONGEST_REPLY}, '*', unpack(fields))
  redis.pcall('PEXPIRE', reply, keep)
end
redis.call('XACK', stream, group, id)
redis.call('XDEL', stream, id)
redis.call('ZREM', later, id)
return 1
"""
)

# Keys: reply stream. Arguments: milliseconds, names and values.
CHUNK = f"""
redis.call('XADD', KEYS[1], 'MAXLEN', '~', {LONGEST_REPLY}, '*', unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""

# Keys: stream, later. Arguments: group, consumer, and the ids that it works on. What else was delivered to it came when
# it did not listen: it goes to others at once, and does not count as delivered.
RETURN = (
    _NOW
    + f"""
local stream, later, group, consumer, held = KEYS[1], KEYS[2], ARGV[1], ARGV[2], {{}}
for each = 3, #ARGV do held[ARGV[each]] = true end
for _, pending in ipairs(redis.call('XPENDING', stream, group, '-', '+', 10000, consumer)) do
  local id, count = pending[1], pending[4]
  if not held[id] then
    redis.call('ZADD', later, now, id)
    redis.call('XCLAIM', stream, group, '{WAITING}', 0, id, 'RETRYCOUNT', math.max(0, count - 1), 'JUSTID')
  end
end
"""
)

# Keys: stream. Arguments: group, milliseconds, and a consumer that is gone. Of those that have nothing and that nobody
# has heard of for so long, and of this one, the names are forgotten.
FORGET = """
local stream, group, longest, gone = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local consumer = {}
  for each = 1, #fields, 2 do consumer[fields[each]] = fields[each + 1] end
  if consumer.pending == 0 and (consumer.name == gone or consumer.idle > longest) then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer.name)
  end
end
"""
