-- keys: live claimed
-- parts: states state
-- ARGV: now, worker, seqs
-- Returns how many of these jobs run on the worker, but are not among its jobs: they would never be given back.
local unheld = 0
for i = 3, #ARGV do
  local record = redis.call('HGET', live, ARGV[i])
  local s = record and read_state(record)
  if s and s.state == RUNNING and s.worker == ARGV[2] and redis.call('SISMEMBER', claimed, ARGV[i]) == 0 then
    unheld = unheld + 1
  end
end
return unheld
