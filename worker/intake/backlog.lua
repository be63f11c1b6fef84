-- How many entries a stream holds, and the ids of the first and the last. Only ids leave the server: a plain XRANGE would
-- transfer the entries, and an entry may have hundreds of megabytes.
--
-- KEYS: the stream.
local function first_id(entries)
  return entries[1] and entries[1][1] or false
end

return {
  redis.call('XLEN', KEYS[1]),
  first_id(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)),
  first_id(redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)),
}
