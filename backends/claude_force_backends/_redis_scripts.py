"""What runs inside the Redis server: each verb's change to an entry and to the account is one atomic script.

A partition is six kinds of keys in one hash slot::

    cfc:{namespace:partition}:d:<key>    string: 8 bytes version, 8 bytes expiry (a double, seconds), the value
    cfc:{namespace:partition}:sizes      hash: the size of each entry; its length is the number of entries
    cfc:{namespace:partition}:uses       sorted set: when each entry was used last, by a counter
    cfc:{namespace:partition}:lives      sorted set: when each entry that expires does
    cfc:{namespace:partition}:reads      list: what was read since the sorted set was last put in order, oldest first
    cfc:{namespace:partition}:account    hash: ``bytes``, the sum of the sizes; ``uses``, the counter;
                                         ``evicted``, what the server had evicted when the index was checked

Reads fetch values by plain ``MGET``, since Lua pays for every byte that passes through it, and note the names by
``RPUSH``, which costs a tenth of a script. Whoever writes, and so may evict, first puts the noted uses in order; a
reader does when the list has grown by :data:`MOST_READS`. So the order of use is exact all the same.

By the server's clock entries expire natively, to the millisecond, which is also what the indexes hold; an index row
whose data is gone is dropped by whoever meets it first.
"""

from __future__ import annotations

import hashlib
from typing import Dict, NamedTuple

__all__ = ["HEADER_BYTES", "INDEXES", "MOST_READS", "SCRIPTS", "VERSION_BYTES", "Script"]

VERSION_BYTES = 8
HEADER_BYTES = 16
INDEXES = ("sizes", "uses", "lives", "account", "reads")

MOST_READS = 256
"""How many reads are noted before one of the readers puts them in order."""

# KEYS: the five indexes, then the data keys that the caller names. Victims are found in the indexes; their
# data keys lie in the same slot.
# ARGV: the prefix of data keys; the time in seconds, or nothing for the server's own; the script's arguments.
_COMMON = """
local sizes, uses, lives, account, reads = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local data, native = ARGV[1], ARGV[2] == ''
local now
if native then
    local time = redis.call('TIME')
    now = time[1] + time[2] / 1000000
else
    now = tonumber(ARGV[2])
end

-- A server that is full refuses a script's first write if it may need memory, and only the first. For what
-- needs none to speak of, this is a first write that it lets pass.
local function go_on_when_full()
    redis.call('HDEL', account, '')
end

local function exact(number)
    return string.format('%.17g', number)
end

local function total()
    return tonumber(redis.call('HGET', account, 'bytes') or 0)
end

-- Counts each name as a use, in this order. Data that the account does not know, which is that of a name without a row
-- but the one that is just being written, is removed.
local function rank(names, written)
    local before = redis.call('HINCRBY', account, 'uses', #names) - #names
    for first = 1, #names, 1000 do
        local rows = {}
        for i = first, math.min(first + 999, #names) do
            rows[#rows + 1] = before + i
            rows[#rows + 1] = names[i]
        end
        if redis.call('ZADD', uses, 'XX', 'CH', unpack(rows)) < #rows / 2 then
            for i = 2, #rows, 2 do
                if rows[i] ~= written and not redis.call('ZSCORE', uses, rows[i]) then
                    redis.call('UNLINK', data .. rows[i])
                end
            end
        end
    end
end

local function settle(written)
    local names = redis.call('LRANGE', reads, 0, -1)
    if #names > 0 then
        redis.call('DEL', reads)
        rank(names, written)
    end
end

local function use(key)
    settle(key)
    redis.call('ZADD', uses, redis.call('HINCRBY', account, 'uses', 1), key)
end

local function drop(key)
    -- First the data: if that lies on another node of a cluster already, nothing has happened yet.
    local found = redis.call('UNLINK', data .. key)
    local size = redis.call('HGET', sizes, key)
    if size then
        redis.call('HDEL', sizes, key)
        redis.call('ZREM', uses, key)
        redis.call('ZREM', lives, key)
        redis.call('HINCRBY', account, 'bytes', 0 - (tonumber(size) or 0))
    end
    return found
end

local function purge(most)
    local expired = redis.call('ZRANGEBYSCORE', lives, '-inf', exact(now), 'LIMIT', 0, most)
    for _, key in ipairs(expired) do
        drop(key)
    end
    return #expired
end

local function recount()
    local bytes = 0
    for _, size in ipairs(redis.call('HVALS', sizes)) do
        bytes = bytes + (tonumber(size) or 0)
    end
    redis.call('HSET', account, 'bytes', exact(bytes))
    return bytes
end

-- If the server evicted an index, what it held cannot be counted any more; start anew from nothing.
local function forget()
    redis.call('DEL', sizes, lives)
    redis.call('HSET', account, 'bytes', 0)
end

-- Evicts until the total is within the limit, at most so many entries; returns how many live ones.
local function trim(limit, most)
    local evicted = 0
    while most > 0 and total() > limit do
        if purge(1) == 0 then
            local oldest = redis.call('ZRANGE', uses, 0, 0)[1]
            if oldest then
                evicted = evicted + drop(oldest)
            else
                forget()
            end
        end
        most = most - 1
    end
    return evicted
end

-- Gives an entry its expiry. The server deletes when its clock is past the time given, we when it is reached.
local function expire(key, ttl)
    if ttl == '' then
        redis.call('ZREM', lives, key)
        return
    end
    local expires, milliseconds = now + ttl
    if native and expires < 1e12 then
        milliseconds = math.ceil(expires * 1000)
        expires = milliseconds / 1000
    end
    redis.call('SETRANGE', data .. key, 8, struct.pack('>d', expires))
    redis.call('ZADD', lives, exact(expires), key)
    if milliseconds then
        -- Last: a time that is over deletes the entry, and writing into it would make another one.
        redis.call('PEXPIREAT', data .. key, milliseconds - 1)
    end
end

-- Returns the version of a live entry.
local function live(key)
    local header = redis.call('GETRANGE', data .. key, 0, 15)
    if #header == 16 and now < struct.unpack('>d', header, 9) then
        return string.sub(header, 1, 8)
    end
end

-- The same; drops what is left of another.
local function version_of(key)
    local found = live(key)
    if not found then
        drop(key)
    end
    return found
end
"""

# The value is written first: a server that is full then refuses the script before it changed anything.
_SET = """
local limit, key, blob, ttl, only_if_absent = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7] == '1'
if only_if_absent then
    -- What has our own version was stored by this very call, whose reply was lost.
    local found = live(key)
    if found and found ~= string.sub(blob, 1, 8) then
        go_on_when_full()
        use(key)
        return -1
    end
end
redis.call('SET', data .. key, blob)
expire(key, ttl)
local size = #key + #blob - 16
local before = redis.call('HGET', sizes, key) or 0
redis.call('HSET', sizes, key, size)
redis.call('HINCRBY', account, 'bytes', size - before)
use(key)
if limit ~= '' then
    return trim(tonumber(limit), math.huge)
end
purge(10)
return 0
"""

# Puts what was noted in order, and behind it the names that are given.
_USE = """
go_on_when_full()
settle()
if #ARGV > 2 then
    local names = {}
    for i = 3, #ARGV do
        names[#names + 1] = ARGV[i]
    end
    rank(names)
end
return 0
"""

# What a read found, and found expired or damaged: it goes for good, unless a newer entry has taken its place.
_SWEEP = """
go_on_when_full()
for i = 3, #ARGV do
    version_of(ARGV[i])
end
return 0
"""

_DELETE = """
local key, version = ARGV[3], ARGV[4]
local found = version_of(key)
if not found or (version ~= '' and version ~= found) then
    return 0
end
local deleted = drop(key)
-- For those who wait. A user who may not publish deletes all the same.
redis.pcall('PUBLISH', data .. key, '')
return deleted
"""

_TOUCH = """
local key, ttl, version = ARGV[3], ARGV[4], ARGV[5]
local found = version_of(key)
if not found or (version ~= '' and version ~= found) then
    return 0
end
go_on_when_full()
if ttl == '' then
    redis.call('SETRANGE', data .. key, 8, struct.pack('>d', math.huge))
    redis.call('PERSIST', data .. key)
end
expire(key, ttl)
use(key)
return 1
"""

_TRIM = """
local limit = tonumber(ARGV[3])
settle()
trim(limit, 1000)
return total() > limit and 1 or 0
"""

# What the server evicts under maxmemory leaves rows behind. Its own count tells whether that happened since
# the index was last checked; a user that may not read it does without.
_USAGE = """
go_on_when_full()
if ARGV[3] ~= '' then
    redis.call('HSET', account, 'evicted', ARGV[3])
end
local more = purge(1000) == 1000 and 1 or 0
local entries = redis.call('HLEN', sizes)
local info = redis.pcall('INFO', 'stats')
local evicted = type(info) == 'string' and string.match(info, 'evicted_keys:(%d+)') or '0'
if entries == 0 then
    redis.call('DEL', sizes, lives, account, reads)
    return {more, 1, evicted, 0, 0}
end
local checked = redis.call('HGET', account, 'evicted') == evicted and 1 or 0
local bytes = total()
if not (bytes and bytes >= 0) then
    -- Somebody spoilt it.
    bytes = recount()
end
return {more, checked, evicted, entries, bytes}
"""

_SCAN = """
local page = redis.call('HSCAN', sizes, ARGV[3], 'COUNT', 500)
local rows = {page[1]}
local spoilt = false
for i = 1, #page[2], 2 do
    local key, size = page[2][i], page[2][i + 1]
    -- Names and sizes that no script of ours wrote go with what lies under them.
    local ours = string.match(key, '^[%w._-]+$') and string.match(size, '^%d+$') and #size < 16
    if not ours then
        redis.call('HSET', sizes, key, 0)
        spoilt = true
    end
    if not ours or redis.call('TYPE', data .. key)['ok'] ~= 'string' then
        drop(key)
    else
        local expires = redis.call('ZSCORE', lives, key)
        if not expires or now < tonumber(expires) then
            rows[#rows + 1] = key
            rows[#rows + 1] = size
            rows[#rows + 1] = expires and exact(expires - now) or ''
        end
    end
end
if spoilt then
    recount()
end
return rows
"""

_CLEAR = """
if purge(1000) == 1000 then
    return {0, 1}
end
local deleted = 0
for _, key in ipairs(redis.call('ZRANGE', uses, 0, 999)) do
    deleted = deleted + drop(key)
end
local more = redis.call('EXISTS', uses)
if more == 0 then
    redis.call('DEL', sizes, lives, account, reads)
end
return {deleted, more}
"""

# Somebody put another type of record where one of ours belongs. It goes, and with an index all: what they held is not
# known any more. The entries are removed when they are read, as after an eviction of an index.
_MEND = """
local kinds = {'hash', 'zset', 'zset', 'hash', 'list'}
local lost = false
for i, name in ipairs(KEYS) do
    local kind = redis.call('TYPE', name)['ok']
    if kind ~= 'none' and kind ~= (kinds[i] or 'string') then
        redis.call('UNLINK', name)
        lost = lost or i <= 4
    end
end
if lost then
    redis.call('UNLINK', sizes, uses, lives, account, reads)
end
return 0
"""


class Script(NamedTuple):
    """A Lua script and the digest by which the server knows it."""

    text: str
    sha: str


def _script(body: str) -> Script:
    text = _COMMON + body
    # SHA-1 is the server's name for a script, not a safeguard.
    return Script(text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324


SCRIPTS: Dict[str, Script] = {
    "set": _script(_SET),
    "use": _script(_USE),
    "sweep": _script(_SWEEP),
    "delete": _script(_DELETE),
    "touch": _script(_TOUCH),
    "trim": _script(_TRIM),
    "usage": _script(_USAGE),
    "scan": _script(_SCAN),
    "clear": _script(_CLEAR),
    "mend": _script(_MEND),
}
