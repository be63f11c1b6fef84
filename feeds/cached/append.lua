-- Append new movements to the cached feeds of one organisation. Returns 1; or 0 if it has none, or if its hash was damaged
-- and is removed. seal.lua is put before this script: it defines seal, read_count and DAMAGED.
--
-- KEYS: the organisation's hash, then the list of each feed that the movements belong to.
-- ARGV: window, number of feeds; then three for each feed: its number, the ordinal of its last movement, and
--       which of the items belong to it (their places, separated by commas, at most the window); then the items,
--       `crc json` as format.py seals them.
local hash = KEYS[1]
local window = tonumber(ARGV[1])
local feeds = tonumber(ARGV[2])
local first_item = 2 + 3 * feeds

-- Readers set `gen` when they create a hash. A hash without it was not created by a reader; one with a damaged count
-- cannot be used.
if redis.call('HEXISTS', hash, 'gen') == 0 then
  redis.call('UNLINK', hash)
  return 0
end
local counts, floors = {}, {}
for i = 1, feeds do
  local feed = ARGV[3 * i]
  counts[i] = read_count(hash, feed)
  floors[i] = read_count(hash, '~' .. feed)
  if counts[i] == DAMAGED or floors[i] == DAMAGED then
    redis.call('UNLINK', hash)
    return 0
  end
end

-- Push the items above `count` to a list.
local function push(list, places, first, count)
  local elements = {}
  for i = math.max(1, count - first + 2), #places do
    elements[#elements + 1] = string.format('%.0f', first + i - 1) .. ' ' .. ARGV[first_item + places[i]]
  end
  redis.call('RPUSH', list, unpack(elements))
  redis.call('LTRIM', list, -window, -1)
end

for i = 1, feeds do
  local feed, last, count, list = ARGV[3 * i], ARGV[3 * i + 1], counts[i], KEYS[i + 1]
  local places = {}
  for place in string.gmatch(ARGV[3 * i + 2], '%d+') do
    places[#places + 1] = tonumber(place)
  end
  local first = tonumber(last) - #places + 1
  if not count then
    -- A reader may be about to put this feed, read from Postgres, into the cache. The floor is the lowest count that it
    -- may put. It is not the count: appends may run out of order. If the append of a later movement ran before this hash
    -- existed, it added nothing, and the floor is too low to be the count.
    if tonumber(last) > (floors[i] or 0) then
      redis.call('HSET', hash, '~' .. feed, seal('~' .. feed, last))
    end
  elseif tonumber(last) > count then
    -- A lost list stays lost until the feed is read again; a feed's first movement starts one.
    local listed = count == 0 or redis.call('EXISTS', list) == 1
    local gap = first > count + 1
    if gap then
      redis.call('DEL', list)
      listed = listed and #places == window
    end
    if listed then
      push(list, places, first, count)
      if gap or count == 0 then
        redis.call('PEXPIRE', list, redis.call('PTTL', hash))
      end
    end
    redis.call('HSET', hash, feed, seal(feed, last))
  end
end
return 1
