-- Put what a reader read from Postgres in the place of a feed, unless something newer may have come. Returns 1 if
-- it was put.
--
-- KEYS: the organisation's hash, the feed's list.
-- ARGV: the `gen` that the reader saw before it read, the feed's number, its count, its newest entries,
--       oldest first.
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
if #ARGV > 3 then
  redis.call('RPUSH', list, unpack(ARGV, 4))
  -- Never beyond the hash's end: a lost append is to be forgotten with all else.
  redis.call('PEXPIRE', list, redis.call('PTTL', hash))
end
redis.call('HDEL', hash, '~' .. feed)
redis.call('HSET', hash, feed, seal(feed, count))
return 1
