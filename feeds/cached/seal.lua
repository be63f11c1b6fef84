-- What the scripts that write share: it is set before each of them.

-- A count as the hash keeps it, bound to organisation and feed; feeds/cached/format.py does the same.
local function seal(feed, count)
  local proof = redis.sha1hex(KEYS[1] .. ':' .. feed .. ':' .. count)
  return count .. ' ' .. string.sub(proof, 1, 8)
end

local DAMAGED = -1

-- A feed's count in the hash: nil where there is none, DAMAGED where it does not prove itself.
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
