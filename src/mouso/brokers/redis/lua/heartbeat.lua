-- keys: meta jobs live ready delayed waiting expiring parked counts claimed cancels asked knows tasks workers leases_until beats
--   steadies reaped bell
-- parts: anyway constants now states job state counts waits knows skew steady
-- ARGV: now, boot id and steady clock of the caller, worker, its description, the tasks that it knows, each between two \1
-- Returns commands: kind, key, token, …
local worker, names = ARGV[4], ARGV[6]
local reply = {}
if redis.call('ZREM', reaped, worker) == 1 then
  reply = {'rejoin', 0, 0}
end
redis.call('HSET', workers, worker, ARGV[5])
redis.call('HSET', beats, worker, now)
redis.call('ZADD', leases_until, steady(ARGV[2], tonumber(ARGV[3])) + LEASE, worker)
learn(worker, names)

local freed = false
if redis.call('EXISTS', parked) == 1 then
  for task in string.gmatch(names, '[^\1]+') do
    local found = redis.call('ZRANGEBYLEX', parked, '[' .. task .. '\0', '(' .. task .. '\1', 'LIMIT', 0, 10000)
    for _, member in ipairs(found) do
      local job = read_job(string.sub(member, -15))
      local record = job and redis.call('HGET', live, job.seq)
      if record then
        local s = read_state(record)
        unwait(job, s)
        waits(job, s, AVAILABLE)
        freed = true
      else
        redis.call('ZREM', parked, member)
      end
    end
  end
end
for _, command in ipairs({'cancel', 'stack'}) do
  local key = command == 'cancel' and cancels or asked
  if redis.call('EXISTS', key) == 1 then
    for _, seq in ipairs(redis.call(command == 'cancel' and 'SMEMBERS' or 'HKEYS', key)) do
      if redis.call('SISMEMBER', claimed, seq) == 1 then
        local record = redis.call('HGET', live, seq)
        local s = record and read_state(record)
        if s and (command == 'cancel' or tonumber(redis.call('HGET', asked, seq)) == s.claims) then
          reply[#reply + 1] = command
          reply[#reply + 1] = seq
          reply[#reply + 1] = s.claims
        end
      end
    end
  end
end
store_counts()
if freed then
  redis.pcall('PUBLISH', bell .. ':w', '')
end
return reply
