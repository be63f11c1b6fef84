-- Stores this consumer's heartbeat, returns the messages of dead consumers to the queue, and moves messages with a priority
-- into it.
-- Returns how many messages dead consumers held.
--
-- A held list has its oldest message at the right end, and consumers take from the right end of the queue: so the newest is
-- returned first, and the oldest is delivered next. Producers put a message with a priority into a list of its own, which
-- no worker would read: here priorities mean nothing.
--
-- KEYS: the hash of consumers, the queue, then the queue's lists for priorities.
-- ARGV: this consumer, after how many seconds without a heartbeat a consumer is dead, how its held list's key begins.
local now = tonumber(redis.call('TIME')[1])
local returned = 0

redis.call('HSET', KEYS[1], ARGV[1], now)
local consumers = redis.call('HGETALL', KEYS[1])
for i = 1, #consumers, 2 do
  local consumer, seen = consumers[i], tonumber(consumers[i + 1]) or 0
  -- A time far ahead is a dead consumer's too: Redis's clock was set back, and the living have written theirs since.
  if consumer ~= ARGV[1] and math.abs(now - seen) > tonumber(ARGV[2]) then
    while redis.call('LMOVE', ARGV[3] .. consumer, KEYS[2], 'LEFT', 'RIGHT') do
      returned = returned + 1
    end
    redis.call('HDEL', KEYS[1], consumer)
  end
end

for i = 3, #KEYS do
  while redis.call('LMOVE', KEYS[i], KEYS[2], 'RIGHT', 'LEFT') do end
end
return returned
