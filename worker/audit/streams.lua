-- The largest id that a stream has ever given out. Only this id leaves the server: a plain XINFO STREAM would transfer
-- the first and the last entry, and an entry may have hundreds of megabytes.
--
-- KEYS: the stream.
local facts = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #facts, 2 do
  if facts[i] == 'last-generated-id' then
    return facts[i + 1]
  end
end
