-- The sealed count of a feed, and its entries with ordinals from `low` to `high` as far as the list has them,
-- oldest first. For cursors: where an ordinal lies in the list depends on the count.
--
-- KEYS: the organisation's hash, the feed's list. ARGV: the feed's number, low, high.
local sealed = redis.call('HGET', KEYS[1], ARGV[1])
local count = tonumber(string.match(sealed or '', '^%d+'))
local low, high = tonumber(ARGV[2]), tonumber(ARGV[3])
if not count or math.min(high, count) < low then
  return { sealed, {} }
end
return { sealed, redis.call('LRANGE', KEYS[2], low - count - 1, math.min(high, count) - count - 1) }
