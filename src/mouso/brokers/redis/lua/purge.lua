-- keys: meta ids jobs live ready delayed waiting expiring parked counts unique final finished dead ended kept errors progress runs bell
-- parts: anyway constants now states job state counts unique waits forget
-- ARGV: now, queue, at most so many, seqs of waiting jobs that may be in it
-- Returns how many were deleted.
local queue, limit, purged = ARGV[2], tonumber(ARGV[3]), 0
local function purge(seq)
  local record = redis.call('HGET', live, seq)
  local s = record and read_state(record)
  if s and s.queue == queue and s.state ~= RUNNING and purged < limit then
    local job = read_job(seq, s)
    unwait(job, s)
    forget(job, s.claims, true)
    purged = purged + 1
  end
end
for _, member in ipairs(redis.call('ZRANGEBYLEX', ready, '[' .. queue .. '\0', '(' .. queue .. '\1', 'LIMIT', 0, limit)) do
  purge(string.sub(member, -15))
end
for i = 4, #ARGV do
  purge(ARGV[i])
end
store_counts()
redis.pcall('PUBLISH', bell .. ':c', '')
return purged
