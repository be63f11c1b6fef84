-- The first entries of a stream: for each its id, the field `event` cut to a length, and that field's true length.
-- Reading ends after so many entries or bytes, but not before the first entry. A producer may add entries of any size:
-- without these bounds a few of them would end the process that reads them, or this server. (Against a plain XRANGE it
-- takes 1.0 us more an entry here, and 1.2 us less in the worker, whose client parses less.)
--
-- KEYS: the stream. ARGV: how many entries, how many bytes, where an event is cut.
local STEP = 100
local left, bytes_left, event_max = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local read = {}
local from = '-'
while left > 0 and bytes_left > 0 do
  local entries = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', math.min(left, STEP))
  for _, entry in ipairs(entries) do
    local event = ''
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'event' then
        event = entry[2][i + 1]
      end
    end
    local size = #event
    if size > event_max then
      event = string.sub(event, 1, event_max)
    end
    read[#read + 1] = entry[1]
    read[#read + 1] = event
    read[#read + 1] = size
    from = '(' .. entry[1]
    bytes_left = bytes_left - #event
    if bytes_left <= 0 then
      break
    end
  end
  if #entries < STEP then
    break
  end
  left = left - #entries
end
return read
