-- Replace a cached feed by what a reader read from Postgres, unless something newer may have been published since.
-- Returns 1 if it was replaced.
--
-- KEYS: the organisation's hash, the feed's list.
-- ARGV: the `gen` that the reader saw before it read Postgres, the feed's number, its count, when the items end to be
--       true (milliseconds of this server's clock; nothing: never), its newest items, oldest first.
local hash, list = KEYS[1], KEYS[2]
local feed, count = ARGV[2], ARGV[3]

if redis.call('HGET', hash, 'gen') ~= ARGV[1] then
  return 0
end
for _, field in ipairs({ feed, '~' .. feed }) do
  local newer = read_count(hash, field)
  if newer == DAMAGED then
    redis.call('UNLINK', hash)
    return 0
  end
  if newer and newer > tonumber(count) then
    return 0
  end
end

redis.call('DEL', list)
if #ARGV > 4 then
  redis.call('RPUSH', list, unpack(ARGV, 5))
  -- The list expires with the hash, so that the effect of a lost append ends with it.
  redis.call('PEXPIRE', list, redis.call('PTTL', hash))
  if ARGV[4] ~= '' then
    redis.call('PEXPIREAT', list, ARGV[4], 'LT')
  end
end
redis.call('HDEL', hash, '~' .. feed)
redis.call('HSET', hash, feed, seal(feed, count))
return 1
