-- Add new movements to the feeds of one organisation that somebody reads. Returns 1, or 0 where there was
-- nothing to add to.
--
-- KEYS: the organisation's hash, then the list of each feed that the movements touch.
-- ARGV: window, number of feeds; then three for each feed: its number, the ordinal of
--       the last movement, and which of the lines belong to it (their places, with commas, at most the
--       window); then the lines, `crc json` as proof.py seals them.
local hash = KEYS[1]
local window = tonumber(ARGV[1])
local feeds = tonumber(ARGV[2])
local lines = 2 + 3 * feeds

-- Without its `gen` a hash is nobody's; with a damaged count it tells nothing.
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

-- Push the lines above `count` to a list.
local function push(list, places, first, count)
  local entries = {}
  for i = math.max(1, count - first + 2), #places do
    entries[#entries + 1] = string.format('%.0f', first + i - 1) .. ' ' .. ARGV[lines + places[i]]
  end
  redis.call('RPUSH', list, unpack(entries))
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
    -- Somebody may be reading this feed from Postgres: a floor refuses his refill if it is older. It is no count,
    -- as a later append may have found nobody here and passed by.
    if tonumber(last) > (floors[i] or 0) then
      redis.call('HSET', hash, '~' .. feed, seal('~' .. feed, last))
    end
  elseif tonumber(last) > count then
    -- A list that was lost stays lost until it is read; a feed's first line starts one.
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
