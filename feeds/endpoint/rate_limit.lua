-- Take one token from a key's bucket. Returns 0, or in how many microseconds there is a token.
--
-- The bucket is stored as the instant at which it is full again. It refills by `rate` tokens a second and holds as many.
-- Instants are of Redis's clock; if that is set back, no wait is longer than a second.
--
-- KEYS: the key's bucket. ARGV: the rate, in tokens per second.
local interval = 1000000 / tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full = tonumber(redis.call('GET', KEYS[1]) or now) or now
full = math.min(math.max(full, now), now + 1000000) + interval
local wait = full - now - math.max(1000000, interval)
if wait >= 1 then
  return math.ceil(wait)
end
redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000))
return 0
