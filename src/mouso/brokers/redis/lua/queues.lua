-- keys: jobs ready parked queues counts pauses
-- parts: now job
-- ARGV: now
-- Returns names, counts (name \0 state, number, …), pauses (name, until, …), and for each name with available jobs the age
-- of the oldest in ms.
local oldest = {}
local function consider(seq)
  local job = read_job(seq)
  if job then
    local age = math.max(now - job.enqueued, 0)
    oldest[job.queue] = math.max(oldest[job.queue] or 0, age)
  end
end
local from = '-'
while true do  -- the first of each queue and priority
  local member = redis.call('ZRANGEBYLEX', ready, from, '+', 'LIMIT', 0, 1)[1]
  if not member then break end
  consider(string.sub(member, -15))
  from = '(' .. string.sub(member, 1, -16) .. ':'  -- which comes after all digits
end
for _, member in ipairs(redis.call('ZRANGEBYLEX', parked, '-', '+', 'LIMIT', 0, 1000)) do
  consider(string.sub(member, -15))
end
local ages = {}
for queue, age in pairs(oldest) do
  ages[#ages + 1] = queue
  ages[#ages + 1] = age
end
return {redis.call('SMEMBERS', queues), redis.call('HGETALL', counts), redis.call('HGETALL', pauses), ages}
