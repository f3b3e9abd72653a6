-- keys: ids live asked runs
-- parts: states state
-- ARGV: now, id
local seq = redis.call('HGET', ids, ARGV[2])
local record = seq and redis.call('HGET', live, seq)
local s = record and read_state(record)
if not s or s.state ~= RUNNING then
  return 0
end
redis.call('HSET', asked, seq, s.claims)
redis.call('HDEL', runs, seq .. ':' .. s.claims .. ':s')
return 1
