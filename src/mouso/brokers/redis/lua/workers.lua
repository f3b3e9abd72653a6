-- keys: meta workers holds leases_until beats steadies
-- parts: now skew
-- ARGV: now, boot id and steady clock of the caller
-- Returns the steady instant, then of each worker: id, description, beat, end of its lease, how many jobs it runs.
local reply = {string.format('%d', now - jumped(ARGV[2], tonumber(ARGV[3])))}
local found = redis.call('HGETALL', workers)
for i = 1, #found, 2 do
  reply[#reply + 1] = found[i]
  reply[#reply + 1] = found[i + 1]
  reply[#reply + 1] = redis.call('HGET', beats, found[i]) or '0'
  reply[#reply + 1] = redis.call('ZSCORE', leases_until, found[i]) or '0'
  reply[#reply + 1] = redis.call('HGET', holds, found[i]) or '0'
end
return reply
