-- keys: meta ids jobs live ready delayed waiting expiring counts unique periods queues bell
-- parts: now states chunks job state counts unique
-- ARGV: now, then each job: delay, due, ttl, expires (-1: none), length of the header, header, body.
-- Returns for each job '' if it is stored now, else the id of the one that is there.
local n = #ARGV - 1
local reply, new_ids, new_jobs, new_ready, new_live, seen = {}, {}, {}, {}, {}, {}
local last, known = nil, {}

-- The number of the first job. After everything was deleted numbers go on above those of jobs that may still run.
local function first()
  local start = redis.call('HINCRBY', meta, 'seq', n) - n + 1
  if start == 1 then
    start = math.floor(now) * 100
    redis.call('HSET', meta, 'seq', string.format('%d', start + n - 1), 'base', string.format('%d', start))
  end
  return start
end

for i = 1, n do
  local argument = ARGV[i + 1]
  local delay, due, ttl, expires, length = struct.unpack('>ddddH', argument)
  local priority, queue, task, key, scope, period, id = struct.unpack('>hBc0Hc0Hc0BdBc0', argument, 35)
  if seen[id] or redis.call('HEXISTS', ids, id) == 1 then
    reply[i] = id
  else
    local held_by = key ~= '' and holder(key)
    if held_by then
      reply[i] = held_by
    else
      reply[i] = ''
      seen[id] = true
      last = last and last + 1 or first()
      local seq = string.format('%015d', last)
      if delay >= 0 then due = now + delay end
      if ttl >= 0 then expires = now + ttl end
      local state = due > now and SCHEDULED or AVAILABLE
      new_ids[#new_ids + 1] = id
      new_ids[#new_ids + 1] = seq
      new_jobs[#new_jobs + 1] = seq
      new_jobs[#new_jobs + 1] = struct.pack('>Hdd', length + 18, now, expires) .. string.sub(argument, 35)
      new_live[#new_live + 1] = seq
      new_live[#new_live + 1] = struct.pack('>BddddBdBBBc0Bc0', state, 0, 0, 0, 0, 1, state == SCHEDULED and due or 0,
        key ~= '' and 1 or 0, expires >= 0 and 1 or 0, 0, '', #queue, queue)
      if state == AVAILABLE then
        new_ready[#new_ready + 1] = 0
        new_ready[#new_ready + 1] = place(queue, priority, seq)
      else
        redis.call('ZADD', delayed, due, seq)
        redis.call('ZADD', waiting, 0, seq)
      end
      if expires >= 0 then
        redis.call('ZADD', expiring, expires, seq)
      end
      if key ~= '' then
        hold({seq = seq, key = key, scope = scope, period = period, enqueued = now, id = id})
      end
      if not known[queue] then
        known[queue] = true
        redis.call('SADD', queues, queue)
      end
      count(queue, state, 1)
    end
  end
end
if last then
  chunks('HSET', ids, new_ids)
  chunks('HSET', jobs, new_jobs)
  chunks('HSET', live, new_live)
  chunks('ZADD', ready, new_ready)
  store_counts()
  redis.call('PUBLISH', bell .. ':w', '')
end
return reply
