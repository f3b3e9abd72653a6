-- keys: meta jobs live ready delayed waiting expiring parked counts unique final finished dead ended kept claimed holds cancels asked knows tasks
--   workers leases_until beats reaped bell
-- parts: anyway now states job state counts unique waits finish give_back knows holds
-- ARGV: now, worker, at most so many claims, 'leave' (it has left), or the instant until which its lease must have ended
--   (by the steady clock) if it is to be reaped
-- Returns how many claims went back, and 1 if the worker is gone: all its claims went back.
local worker, limit = ARGV[2], tonumber(ARGV[3])
if ARGV[4] ~= 'leave' then
  local stop = redis.call('ZSCORE', leases_until, worker)
  if not stop or tonumber(stop) > tonumber(ARGV[4]) then
    return {0, 0}
  end
end
local back = 0
for _, seq in ipairs(redis.call('SMEMBERS', claimed)) do
  if back == limit then
    break
  end
  local record = redis.call('HGET', live, seq)
  if record then
    give_back(seq, read_state(record))
    back = back + 1
  else
    redis.call('SREM', claimed, seq)
  end
end
local over = redis.call('EXISTS', claimed) == 0
if over then
  redis.call('HDEL', workers, worker)
  redis.call('HDEL', beats, worker)
  redis.call('ZREM', leases_until, worker)
  learn(worker, '')
  if ARGV[4] == 'leave' then
    redis.call('ZREM', reaped, worker)
  else
    redis.call('ZADD', reaped, now, worker)
  end
end
store_counts()
note_holds(worker)
redis.pcall('PUBLISH', bell .. ':w', '')
redis.pcall('PUBLISH', bell .. ':c', '')
return {back, over and 1 or 0}
