-- Shared by the scripts that write: it is put before each of them.

-- A count as the hash holds it, with a checksum over key, feed and count. feeds/cached/format.py does the same.
local function seal(feed, count)
  local checksum = redis.sha1hex(KEYS[1] .. ':' .. feed .. ':' .. count)
  return count .. ' ' .. string.sub(checksum, 1, 8)
end

local DAMAGED = -1

-- A feed's count in the hash: nil if there is none, DAMAGED if its seal is not valid.
local function read_count(hash, feed)
  local sealed = redis.call('HGET', hash, feed)
  if not sealed then
    return nil
  end
  local count = string.match(sealed, '^(%d+) ')
  if count and seal(feed, count) == sealed then
    return tonumber(count)
  end
  return DAMAGED
end
