-- keys: ids jobs live ready delayed waiting expiring parked counts unique periods final finished dead ended kept bell
-- parts: now states job state counts unique waits finish expire read_final
-- ARGV: now, whether there are bodies (1), then of each job: id, body with other arguments if so
local reply = {}
local step = ARGV[2] == '1' and 2 or 1
for i = 3, #ARGV, step do
  local seq = redis.call('HGET', ids, ARGV[i])
  local job = seq and read_job(seq)
  local result = 'unknown'
  if job then
    local record = redis.call('HGET', live, seq)
    if record then
      local s = read_state(record)
      result = 'live'
      if s.state == SCHEDULED or s.state == RETRYABLE then
        unwait(job, s)
        waits(job, s, AVAILABLE)
        result = 'retried'
      end
    else
      local f = read_final(redis.call('HGET', final, seq), job)
      local held_by, over
      if f.state ~= COMPLETED and job.key ~= '' then
        held_by, over = holder(job.key)
      end
      if f.state == COMPLETED then
        result = 'done'
      elseif held_by and held_by ~= job.id then
        result = 'conflict'
      else
        if over then expire(over) end
        redis.call('HDEL', final, seq)
        for _, key in ipairs({finished, dead, kept, ended}) do redis.call('ZREM', key, seq) end
        count(f.queue, f.state, -1)
        local length = struct.unpack('>H', job.record)
        job.expires = -1
        redis.call('HSET', jobs, seq,
          struct.pack('>Hdd', length, job.enqueued, -1) .. string.sub(job.record, 19))
        if job.key ~= '' and job.scope ~= PERIOD then hold(job) end
        waits(job, {attempts = 0, crashes = 0, releases = f.releases, claims = f.claims, fresh = 1, expires = 0,
          unique = job.key ~= '' and 1 or 0, queue = f.queue}, AVAILABLE)
        result = 'retried'
      end
    end
    if result == 'retried' and step == 2 then
      local record = redis.call('HGET', jobs, seq)
      redis.call('HSET', jobs, seq, string.sub(record, 1, (struct.unpack('>H', record))) .. ARGV[i + 1])
    end
  end
  reply[#reply + 1] = result
end
store_counts()
redis.pcall('PUBLISH', bell .. ':w', '')
redis.pcall('PUBLISH', bell .. ':c', '')
return reply
