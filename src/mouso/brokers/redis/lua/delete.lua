-- keys: meta ids jobs live ready delayed waiting expiring parked counts unique final finished dead ended kept errors progress runs bell
-- parts: anyway constants now states job state counts unique waits read_final forget
-- ARGV: now, ids
local reply = {}
for i = 2, #ARGV do
  local seq = redis.call('HGET', ids, ARGV[i])
  local job = seq and read_job(seq)
  if not job then
    reply[#reply + 1] = 'unknown'
  else
    local record = redis.call('HGET', live, seq)
    local s = record and read_state(record)
    if s and s.state == RUNNING then
      reply[#reply + 1] = 'running'
    else
      if s then
        unwait(job, s)
      else
        s = read_final(redis.call('HGET', final, seq), job)
        count(s.queue, s.state, -1)
      end
      forget(job, s.claims, true)
      reply[#reply + 1] = 'deleted'
    end
  end
end
store_counts()
redis.pcall('PUBLISH', bell .. ':c', '')
return reply
