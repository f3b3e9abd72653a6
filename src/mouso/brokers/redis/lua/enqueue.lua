-- keys: meta ids jobs live ready delayed waiting expiring counts unique periods queues bell
-- parts: now states chunks job state counts unique
-- ARGV: now, then each job: delay, due, ttl, expires (-1: none), length of the header, header, body.
-- Returns for each job '' if it is stored now, else the id of the one that is there.
local n = #ARGV - 1
local reply, new_ids, new_jobs, new_ready, new_live, seen = {}, {}, {}, {}, {}, {}
local new_delayed, new_waiting, new_expiring, new_queues = {}, {}, {}, {}
local new_held, last, known = {}, nil, {}

-- The number of the first job. After everything was deleted numbers go on above those of jobs that may still run.
local function first()
  local start = redis.call('HINCRBY', meta, 'seq', n) - n + 1
  if start == 1 then
    start = math.floor(now) * 100
    redis.call('HSET', meta, 'seq', string.format('%d', start + n - 1), 'base', string.format('%d', start))
  end
  return start
end

local function read()
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
          new_delayed[#new_delayed + 1] = due
          new_delayed[#new_delayed + 1] = seq
          new_waiting[#new_waiting + 1] = 0
          new_waiting[#new_waiting + 1] = seq
        end
        if expires >= 0 then
          new_expiring[#new_expiring + 1] = expires
          new_expiring[#new_expiring + 1] = seq
        end
        if key ~= '' then
          new_held[#new_held + 1] = key
          hold({seq = seq, key = key, scope = scope, period = period, enqueued = now, id = id})
        end
        if not known[queue] then
          known[queue] = true
          new_queues[#new_queues + 1] = queue
        end
        count(queue, state, 1)
      end
    end
  end
end

local function write()
  chunks('HSET', jobs, new_jobs)
  chunks('HSET', live, new_live)
  chunks('ZADD', ready, new_ready)
  chunks('ZADD', delayed, new_delayed)
  chunks('ZADD', waiting, new_waiting)
  chunks('ZADD', expiring, new_expiring)
  chunks('SADD', queues, new_queues)
  chunks('HSET', ids, new_ids)
  store_counts()
end

-- Takes everything back: a server does not when a script fails.
local function undo()
  for i, values in ipairs({new_ids, new_jobs, new_live}) do
    for j = 1, #values, 2 do
      redis.pcall('HDEL', ({ids, jobs, live})[i], values[j])
    end
  end
  for i, values in ipairs({new_ready, new_delayed, new_waiting, new_expiring}) do
    for j = 2, #values, 2 do
      redis.pcall('ZREM', ({ready, delayed, waiting, expiring})[i], values[j])
    end
  end
  for _, key in ipairs(new_held) do
    redis.pcall('HDEL', unique, key)
    redis.pcall('ZREM', periods, key)
  end
end

local done, why = pcall(read)
if done and last then
  done, why = pcall(write)
end
if not done then
  undo()
  return redis.error_reply('-' .. (type(why) == 'table' and why.err or why))
end
if last then
  redis.pcall('PUBLISH', bell .. ':w', '')
end
return reply
