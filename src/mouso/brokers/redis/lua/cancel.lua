-- keys: meta ids jobs live ready delayed waiting expiring parked counts unique final finished dead ended kept cancels bell
-- parts: anyway now states job state counts unique waits finish
-- ARGV: now, ids
local reply = {}
for i = 2, #ARGV do
  local seq = redis.call('HGET', ids, ARGV[i])
  local record = seq and redis.call('HGET', live, seq)
  if not seq then
    reply[#reply + 1] = 'unknown'
  elseif not record then
    reply[#reply + 1] = 'done'
  else
    local s = read_state(record)
    if s.state == RUNNING then
      redis.call('SADD', cancels, seq)
      reply[#reply + 1] = 'requested'
    else
      unwait(read_job(seq, s), s)
      finish(seq, s, CANCELLED, '', -1, 'cancelled', '')
      reply[#reply + 1] = 'cancelled'
    end
  end
end
store_counts()
redis.pcall('PUBLISH', bell .. ':w', '')
redis.pcall('PUBLISH', bell .. ':c', '')
return reply
