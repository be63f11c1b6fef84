-- The sealed count of a feed, and its items at a place as far as the list has them, oldest first. Only the count if the
-- reader knows it already: then it has the page.
--
-- A script, because the position of a cursor's ordinal in the list depends on the count. The arithmetic is that of
-- `feeds.page.cut`.
--
-- KEYS: the organisation's hash, the feed's list. ARGV: the feed's number; limit, skip, ceiling, floor; a sealed
--       count, or nothing.
local sealed = redis.call('HGET', KEYS[1], ARGV[1])
if sealed == ARGV[6] then
  return { sealed }
end
local count = tonumber(string.match(sealed or '', '^%d+'))
if not count then
  return { sealed, {} }
end
local limit, skip = tonumber(ARGV[2]), tonumber(ARGV[3])
local ceiling, floor = tonumber(ARGV[4]), tonumber(ARGV[5])
local newest = math.max(math.min(count - skip, ceiling), 0)
local below = math.max(newest - limit, math.min(floor, newest), 0)
if newest == below then
  return { sealed, {} }
end
return { sealed, redis.call('LRANGE', KEYS[2], below - count, newest - count - 1) }
