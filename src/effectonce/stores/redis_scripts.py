"""The scripts that Redis runs for us: each validates first, writes last, and declares every key.

Scripts by their SHA, not Functions. A SHA names the exact text, so releases run side by side on one
server; a server that does not have it (restarted, failed over, a slot moved, its cache flushed)
answers NOSCRIPT before anything ran, and the same call goes out again with the text. A Function is
one name for the whole server: members of two releases would replace each other's, and a FUNCTION
FLUSH or a failover that lost its load leaves a name that means nothing.

A script with a `#!lua` line is refused whole, before it begins, where the server is out of memory,
a replica, unable to write to its disk or short of replicas. So nothing fails after the first write:
what a script could still meet (a wrong type, a missing right, a damaged row) it looks for before.
No script is flagged `no-writes`, not even READ: a replica that lags, or has just been emptied to
follow a new master, would call "new" what took effect, and hand old rows to a handler whose commit
the new master takes. And where a commit would be refused, no handler should begin.

No number passes through Lua but counts and floors (u32): all others are compared as bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha1
from typing import Final


@dataclass(frozen=True)
class Script:
    """A script by its text; `sha` is the name that Redis knows it by."""

    text: str

    @cached_property
    def sha(self) -> str:
        return sha1(self.text.encode(), usedforsecurity=False).hexdigest()


# What every script with markers begins with.
_SPLIT: Final = """
local sub = string.sub

-- `width` bytes from each `step` bytes of a text, and how many that are
local function split(text, step, width)
  local parts, count = {}, 0
  for at = 1, #text, step do
    count = count + 1
    parts[count] = sub(text, at, at + width - 1)
  end
  return parts, count
end
"""

# Markers in hashes, a field a key. A chunk stays below the 8,000 values that Lua unpacks.
_HASHES: Final = (
    _SPLIT
    + """
local CHUNK = 3000
local KEY, MARKER = 16, 33

-- numbers one after another, as u32
local function numbers(list)
  local packed = {}
  for first = 1, #list, CHUNK do
    local last = math.min(first + CHUNK - 1, #list)
    local layout = '<' .. string.rep('I4', last - first + 1)
    packed[#packed + 1] = struct.pack(layout, unpack(list, first, last))
  end
  return table.concat(packed)
end

-- calls found(row, value) for each key that one generation has marked; what is wrong, if anything
local function search(hash, keys, count, found)
  if redis.call('EXISTS', hash) == 0 then return 'lost' end
  for first = 1, count, CHUNK do
    local last = math.min(first + CHUNK - 1, count)
    local values = redis.call('HMGET', hash, unpack(keys, first, last))
    for i = 1, last - first + 1 do
      local value = values[i]
      if value then
        if #value ~= MARKER then return 'damaged' end
        found(first + i - 1, value)
      end
    end
  end
end
"""
)

_CURRENT: Final = """
local generations, run, partition, fence, packed = unpack(ARGV)
if fence ~= '' then
  local row = redis.call('HGET', KEYS[2], partition)
  if not row or sub(row, 1, #fence) ~= fence then return {'fenced'} end
end
local current = redis.call('HGET', KEYS[1], 'generations')
if not current and fence ~= '' then return {'lost', KEYS[1]} end
current = current or ''
if current ~= generations then return {'generations', current} end
local mark = redis.call('HGET', KEYS[1], 'mark') or ''
"""

LOOKUP: Final = Script(
    """#!lua
-- KEYS  scope, positions, markers of each generation
-- ARGV  generations, run, partition, fence or '', keys
"""
    + _HASHES
    + _CURRENT
    + """
local keys, count = split(packed, KEY, KEY)
local rows, fingerprints, hits = {}, {}, 0
local function found(row, value)
  hits = hits + 1
  rows[hits] = row
  fingerprints[hits] = sub(value, 1, 4)
end
for i, generation in ipairs(split(generations, 8, 8)) do
  if sub(generation, 1, 4) == run then
    local wrong = search(KEYS[2 + i], keys, count, found)
    if wrong then return {wrong, KEYS[2 + i]} end
  end
end
return {'known', numbers(rows), table.concat(fingerprints), mark}
"""
)

LOOKUP_PACKED: Final = Script(
    """#!lua
-- KEYS  scope, positions, markers of each generation
-- ARGV  as LOOKUP's; no key is looked up
"""
    + _SPLIT
    + _CURRENT
    + """
local lengths = {}
for i, generation in ipairs(split(generations, 8, 8)) do
  if sub(generation, 1, 4) == run then
    lengths[#lengths + 1] = redis.call('LLEN', KEYS[2 + i])
    if lengths[#lengths] == 0 then return {'lost', KEYS[2 + i]} end
  end
end
return {'known', mark, lengths}
"""
)

READ: Final = Script(
    """#!lua
-- KEYS  a key
-- ARGV  a command that reads it, and its arguments
return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
"""
)

OPEN: Final = Script(
    """#!lua
-- KEYS  scope, positions
-- ARGV  partition, row before or '', row after
local row = redis.call('HGET', KEYS[2], ARGV[1]) or ''
if row ~= ARGV[2] then return {'moved', row} end
-- made with the first row, so that it is missed where it is gone
if redis.call('EXISTS', KEYS[2]) == 0 and not redis.call('HGET', KEYS[1], 'generations') then
  redis.call('HSET', KEYS[1], 'generations', '')
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
return {'opened'}
"""
)

PROBE: Final = Script(
    """#!lua
-- KEYS  a key of its own
-- every command that the other scripts use; writing last, so that a refusal leaves nothing
redis.call('UNLINK', KEYS[1])
redis.call('HGET', KEYS[1], 'a')
redis.call('HMGET', KEYS[1], 'a', 'b')
redis.call('HGETALL', KEYS[1])
redis.call('HDEL', KEYS[1], 'b')
redis.call('EXISTS', KEYS[1])
redis.call('HSET', KEYS[1], 'a', '1')
redis.call('UNLINK', KEYS[1])
return {'fit'}
"""
)

PROBE_PACKED: Final = Script(
    """#!lua
-- KEYS  a key of its own
-- the same, of scripts whose markers are packed
redis.call('UNLINK', KEYS[1])
redis.call('LLEN', KEYS[1])
redis.call('LRANGE', KEYS[1], 0, -1)
redis.call('RPUSH', KEYS[1], 'a')
redis.call('UNLINK', KEYS[1])
return {'fit'}
"""
)

# The commands of a `tx`, played through before any of them runs. `known[key]` is what the commands
# before have made of a key: its type, whether its former fields are gone, and its counters.
_COMMANDS: Final = """
local KINDS = {
  incrby = 'string', hset = 'hash', hdel = 'hash', hincrby = 'hash', sadd = 'set', srem = 'set',
  zadd = 'zset', zrem = 'zset', rpush = 'list',
}

local function needs(right)
  return 'is not allowed: the user needs +' .. string.lower(right) .. ' for that key'
end

local function countable(value)
  if not value or value == '0' then return true end
  local digits = string.match(value, '^-?([1-9]%d*)$')
  return digits and #digits <= 18
end

-- what is wrong with the step of a counter, if anything
local function miscount(now, name, key, field)
  local value = now.values[field]
  if value == nil and not now.fresh then
    local read = name == 'incrby' and {'GET', key} or {'HGET', key, field}
    if not redis.acl_check_cmd(unpack(read)) then return needs(read[1]) end
    value = redis.call(unpack(read))
  end
  now.values[field] = '0'
  if not countable(value) then return 'meets a value that is no whole number below 10^18' end
end

local function refused(commands)
  local known = {}
  for _, command in ipairs(commands) do
    local name, key = command[1], command[2]
    if not redis.acl_check_cmd(unpack(command)) then return needs(name), command end
    local now = known[key]
    if name == 'set' or name == 'unlink' then
      known[key] = {type = name == 'set' and 'string' or 'none', fresh = true,
                    values = {[''] = command[3] or false}}
    else
      if not now and not redis.acl_check_cmd('TYPE', key) then return needs('TYPE'), command end
      now = now or {type = redis.call('TYPE', key).ok, values = {}}
      known[key] = now
      if now.type == 'none' then now.type = KINDS[name] end
      if now.type ~= KINDS[name] then return 'meets a ' .. now.type, command end
      if name == 'hset' then
        for i = 3, #command, 2 do now.values[command[i]] = command[i + 1] end
      elseif name == 'hdel' then
        for i = 3, #command do now.values[command[i]] = false end
      elseif name == 'incrby' or name == 'hincrby' then
        local field = name == 'hincrby' and command[3] or ''
        local wrong = miscount(now, name, key, field)
        if wrong then return wrong, command end
      end
    end
  end
end
"""

# Both commits read: the arguments, whether the row is the caller's, what has become of generations.
_BEGIN: Final = """
local believed, generations, target, run, partition, fence, follows, commit_id, row, as_of, mark,
  on_existing, packed, outcomes, puts, deletes, calls = unpack(ARGV, 1, 17)
local at = 17

local function take(count, width)
  local taken = {}
  for i = 1, tonumber(count) do
    taken[i] = {unpack(ARGV, at + 1, at + width)}
    at = at + width
  end
  return taken
end

-- the fence: incarnation 1-8, epoch 9-16, commit id 17-32; then writer 33-40, floor 41-44
local before = redis.call('HGET', KEYS[2], partition)
if not before then return {'stale'} end
if #before < 44 then return {'damaged', KEYS[2]} end
if commit_id ~= string.rep('\\0', 16) and sub(before, 17, 32) == commit_id
    and (fence == '' or sub(before, 33, 40) == sub(fence, 1, 8)) then
  return {'already', redis.call('HGET', KEYS[1], 'mark') or ''}
end
local stale = fence == '' or sub(before, 1, 32) ~= fence .. follows
-- effects outside happened, whoever owns the partition by now: their markers are kept
if stale and (on_existing == 'refuse' or #packed == 0) then return {'stale'} end
local current = redis.call('HGET', KEYS[1], 'generations')
if not current then return {'lost', KEYS[1]} end
if current ~= believed then return {'generations', current} end
local was = redis.call('HGET', KEYS[1], 'mark') or ''
"""

_USER: Final = """
-- the user's commands
outcomes = take(outcomes, 2)
local puts_from = at
at = at + 2 * tonumber(puts)
local puts_to = at
deletes = take(deletes, 1)
if at > puts_from then redis.call('HGET', KEYS[3], '') end  -- fails where it is no hash
if #deletes > 0 and not redis.acl_check_cmd('HDEL', KEYS[3], '') then
  return redis.error_reply('NOPERM HDEL')
end
local commands = {}
for i = 1, tonumber(calls) do
  local count = tonumber(ARGV[at + 1])
  local command = {ARGV[at + 2], KEYS[tonumber(ARGV[at + 3])]}
  for j = 4, count + 1 do command[#command + 1] = ARGV[at + j] end
  commands[i] = command
  at = at + count + 1
end
local why, command = refused(commands)
if why then return {'refused', why, command[1], command[2]} end
"""

# And, behind the markers of the one or the other:
_DROP: Final = """
-- generations that every partition has passed
local all, kept, dropped = split(generations, 8, 8), {}, {}
if not stale and sub(before, 41, 44) ~= sub(row, 41, 44) then
  local floor = struct.unpack('>I4', row, 41)
  local rows = redis.call('HGETALL', KEYS[2])
  for i = 1, #rows, 2 do
    if #rows[i + 1] < 44 then return {'damaged', KEYS[2]} end
    if rows[i] ~= partition then
      floor = math.min(floor, (struct.unpack('>I4', rows[i + 1], 41)))
    end
  end
  for i, generation in ipairs(all) do
    if struct.unpack('>I4', generation, 5) < floor then
      dropped[#dropped + 1] = KEYS[2 + 2 * i]
      dropped[#dropped + 1] = KEYS[3 + 2 * i]
    else
      kept[#kept + 1] = generation
    end
  end
  generations = table.concat(kept)
  if #dropped > 0 and not redis.acl_check_cmd('UNLINK', unpack(dropped)) then
    return redis.error_reply('NOPERM UNLINK')
  end
end

-- nothing was written so far, and nothing fails from here on
if not stale then redis.call('HSET', KEYS[2], partition, row) end
"""

_END: Final = """
if stale then
  if generations ~= current then redis.call('HSET', KEYS[1], 'generations', generations) end
  return {'stale'}
end
for from = puts_from, puts_to - 1, 3000 do  -- a chunk stays below the 8,000 values that Lua unpacks
  redis.call('HSET', KEYS[3], unpack(ARGV, from + 1, math.min(from + 3000, puts_to)))
end
for _, delete in ipairs(deletes) do redis.call('HDEL', KEYS[3], delete[1]) end
for _, call in ipairs(commands) do redis.call(unpack(call)) end
if #dropped > 0 then redis.call('UNLINK', unpack(dropped)) end
if generations ~= current then redis.call('HSET', KEYS[1], 'generations', generations) end
return {'applied', existing, generations, was}
"""

COMMIT: Final = Script(
    """#!lua
-- KEYS  scope, positions, the partition's rows; markers and outcomes of each generation; the user's
-- ARGV  as read below; then outcomes (row, value), rows (key, value), deleted rows (key),
--       commands (count, name, key's number, arguments)
"""
    + _HASHES
    + _COMMANDS
    + _BEGIN
    + """
-- what has a marker already
local marked, existing, conflicts = {}, 0, {}
local function found(number)
  marked[number] = true
  existing = existing + 1
  conflicts[existing] = number
end
if #packed > 0 then
  local keys, count = {}, 0  -- without keys it is still seen that no generation is gone
  if stale or as_of ~= was then keys, count = split(packed, KEY + MARKER, KEY) end
  for i, generation in ipairs(split(believed, 8, 8)) do
    if sub(generation, 1, 4) == run then
      local wrong = search(KEYS[2 + 2 * i], keys, count, found)
      if wrong then return {wrong, KEYS[2 + 2 * i]} end
    end
  end
  if existing > 0 and on_existing == 'refuse' then
    return {'conflict', numbers(conflicts)}
  end
  -- what they are added to fails here where it is no hash
  redis.call('HGET', KEYS[2 + 2 * tonumber(target)], '')
  if outcomes ~= '0' then redis.call('HGET', KEYS[3 + 2 * tonumber(target)], '') end
end
"""
    + _USER
    + """
-- keys and markers, taken apart by one call a chunk: `sub` for each of them costs 300 ns a key.
-- 1,130 to 1,240 ns a key in all; as plain commands, in MULTI behind a WATCH, they cost 1,140
local fresh = packed
if existing > 0 then
  local parts, number = {}, 0
  for from = 1, #packed, KEY + MARKER do
    number = number + 1
    if not marked[number] then parts[#parts + 1] = sub(packed, from, from + KEY + MARKER - 1) end
  end
  fresh = table.concat(parts)
end
if #fresh == 0 then generations = believed end
"""
    + _DROP
    + """
if #fresh > 0 then
  target = tonumber(target)
  for from = 1, #fresh, CHUNK * (KEY + MARKER) do
    local chunk = sub(fresh, from, from + CHUNK * (KEY + MARKER) - 1)
    local count = #chunk / (KEY + MARKER)
    local pairs = {struct.unpack(string.rep('c16c33', count), chunk)}
    redis.call('HSET', KEYS[2 + 2 * target], unpack(pairs, 1, 2 * count))
  end
  for _, outcome in ipairs(outcomes) do
    local from = tonumber(outcome[1]) * (KEY + MARKER)
    if not marked[tonumber(outcome[1]) + 1] then
      redis.call('HSET', KEYS[3 + 2 * target], sub(packed, from + 1, from + KEY), outcome[2])
    end
  end
  redis.call('HSET', KEYS[1], 'mark', mark)
end
"""
    + _END
)

COMMIT_PACKED: Final = Script(
    """#!lua
-- KEYS  as COMMIT's
-- ARGV  as COMMIT's; but `packed` is how many packed rows there are, or '', and they come first,
--       outcomes are (key, value), and the caller knows what is marked by now, or is told to look
"""
    + _SPLIT
    + _COMMANDS
    + _BEGIN
    + """
local existing = 0  -- those the caller has left out
if #packed > 0 then
  for i, generation in ipairs(split(believed, 8, 8)) do
    local list = KEYS[2 + 2 * i]
    if sub(generation, 1, 4) == run and redis.call('LLEN', list) == 0 then
      return {'lost', list}
    end
  end
  if as_of ~= was then return {'marked'} end
  -- what they are added to, here or below, fails where it is of another type
  local list = KEYS[2 + 2 * tonumber(target)]
  redis.call('LLEN', list)
  if not redis.acl_check_cmd('RPUSH', list, '') then return redis.error_reply('NOPERM RPUSH') end
  if outcomes ~= '0' then redis.call('HGET', KEYS[3 + 2 * tonumber(target)], '') end
end
local elements = take(packed == '' and 0 or packed, 1)
"""
    + _USER
    + _DROP
    + """
if #packed > 0 then
  target = tonumber(target)
  for _, element in ipairs(elements) do redis.call('RPUSH', KEYS[2 + 2 * target], element[1]) end
  for _, outcome in ipairs(outcomes) do
    redis.call('HSET', KEYS[3 + 2 * target], outcome[1], outcome[2])
  end
  redis.call('HSET', KEYS[1], 'mark', mark)
end
"""
    + _END
)
