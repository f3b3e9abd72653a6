-- keys: meta jobs live ready delayed waiting expiring parked counts unique final finished dead ended kept bell
-- parts: anyway now states job state counts unique waits finish
-- ARGV: now, at most so many
-- Returns how many changed.
local limit, changed, woken = tonumber(ARGV[2]), 0, false
for _, seq in ipairs(redis.call('ZRANGEBYSCORE', expiring, '-inf', now, 'LIMIT', 0, limit)) do
  local job, record = read_job(seq), redis.call('HGET', live, seq)
  if job and record then
    local s = read_state(record)
    unwait(job, s)
    finish(seq, s, EXPIRED, '', -1, 'expired', '')
    changed = changed + 1
  else
    redis.call('ZREM', expiring, seq)
  end
end
for _, seq in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, limit - changed)) do
  local job, record = read_job(seq), redis.call('HGET', live, seq)
  if job and record then
    local s = read_state(record)
    unwait(job, s)
    waits(job, s, AVAILABLE)
    changed, woken = changed + 1, true
  else
    redis.call('ZREM', delayed, seq)
  end
end
store_counts()
if woken then
  redis.pcall('PUBLISH', bell .. ':w', '')
end
if changed > 0 then
  redis.pcall('PUBLISH', bell .. ':c', '')
end
return changed
