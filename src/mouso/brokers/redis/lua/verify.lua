-- keys: ids jobs live final ready finished dead workers
-- parts: now states job state
-- ARGV: now, cursor, at most about so many
-- Returns the next cursor ('0': all is seen), running jobs with their workers, and how often each of diagnosis._WRONG was
-- found.
local reply = redis.call('HSCAN', ids, ARGV[2], 'COUNT', ARGV[3])
local running, homeless, stateless, doubled, unlisted, workerless, unended = {}, 0, 0, 0, 0, 0, 0
for i = 2, #reply[2], 2 do
  local seq = reply[2][i]
  local job, record = read_job(seq), redis.call('HGET', live, seq)
  local ended = redis.call('HEXISTS', final, seq) == 1
  if not job then
    homeless = homeless + 1
  elseif not record and not ended then
    stateless = stateless + 1
  elseif record and ended then
    doubled = doubled + 1
  elseif record then
    local s = read_state(record)
    if s.state == AVAILABLE and not redis.call('ZSCORE', ready, place(job.queue, job.priority, seq)) then
      unlisted = unlisted + 1
    elseif s.state == RUNNING and redis.call('HEXISTS', workers, s.worker) == 0 then
      workerless = workerless + 1
    elseif s.state == RUNNING then
      running[#running + 1] = seq
      running[#running + 1] = s.worker
    end
  elseif not redis.call('ZSCORE', finished, seq) and not redis.call('ZSCORE', dead, seq) then
    unended = unended + 1
  end
end
return {reply[1], running, homeless, stateless, doubled, unlisted, workerless, unended}
