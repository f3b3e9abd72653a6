-- keys: ids live final progress
-- parts: states state read_final
-- ARGV: now, ids
-- Returns for each id: state, attempts, progress; '' for an unknown one.
local reply = {}
for i = 2, #ARGV do
  local seq = redis.call('HGET', ids, ARGV[i])
  local record = seq and redis.call('HGET', live, seq)
  local s = record and read_state(record)
  if seq and not s then
    record = redis.call('HGET', final, seq)
    s = record and read_final(record)
  end
  reply[i - 1] = s and {s.state, s.attempts, redis.call('HGET', progress, seq)} or ''
end
return reply
