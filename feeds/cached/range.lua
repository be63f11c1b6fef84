-- The sealed count of a feed, and its entries at a place as far as the list has them, oldest first. For cursors,
-- as where an ordinal lies in the list depends on the count, and for readers who know a page. The arithmetic is that of `feeds.page.cut`.
--
-- The count alone, where it is the one that the reader knows: he has the page.
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
