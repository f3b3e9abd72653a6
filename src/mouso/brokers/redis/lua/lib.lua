-- What the scripts share. A script names the parts that it needs in its second line; they are put before it.
-- All numbers in records are big-endian; instants and durations are milliseconds. A job's key, called seq, is a number of
-- 15 digits, always as text: texts of one length sort as their numbers do, and need no conversion.

--- constants
local KEPT_RUNS, LEASE = 20, 15000

--- now
-- What a test says, else the server's clock.
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

--- anyway
-- A first write that takes no memory. A server at its limit refuses a script that begins with one that does; what follows
-- must be done all the same: leases are renewed, what has ended is stored, what is old is deleted.
redis.call('HDEL', meta, '')

--- states
local SCHEDULED, AVAILABLE, RUNNING, RETRYABLE = 2, 3, 4, 5
local COMPLETED, CANCELLED, EXPIRED, DEAD, PARKED = 6, 7, 8, 9, 10
local QUEUED, LIVE, PERIOD = 1, 2, 3

--- chunks
-- Calls a command with any number of arguments, in groups that Lua's stack can take (n divides the group).
local function chunks(command, key, arguments)
  for start = 1, #arguments, 6000 do
    redis.call(command, key, unpack(arguments, start, math.min(start + 5999, #arguments)))
  end
end

local function fetch(key, fields)
  local found = {}
  for start = 1, #fields, 6000 do
    local stop = math.min(start + 5999, #fields)
    local part = redis.call('HMGET', key, unpack(fields, start, stop))
    for i = 1, stop - start + 1 do
      found[start + i - 1] = part[i]
    end
  end
  return found
end

--- job
-- A job as its producer gave it: header, and a body that only Python reads.
-- length of the header, enqueued, expires (-1: never), priority, queue, task, unique, scope, period, id
-- Another program may have deleted it: then there is nothing, or with its state what is enough to move it on.
local function read_job(seq, s)
  local record = redis.call('HGET', jobs, seq)
  if not record then
    return s and {seq = seq, enqueued = now, expires = -1, priority = 0, queue = s.queue, task = '', key = '', scope = 0,
      period = 0, id = ''}
  end
  local _, enqueued, expires, priority, queue, task, key, scope, period, id =
    struct.unpack('>HddhBc0Hc0Hc0BdBc0', record)
  return {seq = seq, enqueued = enqueued, expires = expires, priority = priority, queue = queue, task = task,
    key = key, scope = scope, period = period, id = id, record = record}
end

-- A job's place among the available ones: by queue, then priority, then age.
local function place(queue, priority, seq)
  return queue .. '\0' .. string.char(100 - priority) .. seq
end

--- state
-- What changes while a job lives: state, attempts, crashes, releases, claims, fresh, due, whether it has a unique key,
-- whether it expires, worker, queue
local function read_state(record)
  local state, attempts, crashes, releases, claims, fresh, due, unique, expires, worker, queue =
    struct.unpack('>BddddBdBBBc0Bc0', record)
  return {state = state, attempts = attempts, crashes = crashes, releases = releases, claims = claims, fresh = fresh,
    due = due, unique = unique, expires = expires, worker = worker, queue = queue}
end

local function write_state(s)
  return struct.pack('>BddddBdBBBc0Bc0', s.state, s.attempts, s.crashes, s.releases, s.claims, s.fresh, s.due, s.unique,
    s.expires, #s.worker, s.worker, #s.queue, s.queue)
end

--- counts
local tally = {}

local function count(queue, state, n)
  local field = queue .. '\0' .. (state == PARKED and AVAILABLE or state)
  tally[field] = (tally[field] or 0) + n
end

local function store_counts()
  for field, n in pairs(tally) do
    if n ~= 0 and redis.call('HINCRBY', counts, field, n) <= 0 then
      redis.call('HDEL', counts, field)
    end
  end
end

--- unique
-- The id of the job that holds a key now; or nil, and the seq of the job that held it and waits past its expiry, if one does.
local function holder(key)
  local held = redis.call('HGET', unique, key)
  if not held then
    return nil
  end
  local scope, seq, stop, id = struct.unpack('>Bc15dBc0', held)
  if scope == PERIOD then
    return now < stop and id or nil
  end
  local record = redis.call('HGET', live, seq)
  local s = record and read_state(record)
  local job = s and s.expires == 1 and s.state ~= RUNNING and read_job(seq)
  if job and job.expires <= now then
    return nil, seq
  end
  return id
end

local function hold(job)
  local stop = job.scope == PERIOD and job.enqueued + job.period or 0
  redis.call('HSET', unique, job.key, struct.pack('>Bc15dBc0', job.scope, job.seq, stop, #job.id, job.id))
  if stop > 0 then
    redis.call('ZADD', periods, stop, job.key)
  end
end

-- Frees the key of a job that has left the scope in which it holds it.
local function let_go(job, even_for_a_period)
  local held = redis.call('HGET', unique, job.key)
  if held then
    local scope, seq = struct.unpack('>Bc15', held)
    if seq == job.seq and (scope ~= PERIOD or even_for_a_period) then
      redis.call('HDEL', unique, job.key)
    end
  end
end

--- waits
-- Makes a job available, due later, or set aside; it must be in no other state by now.
local function waits(job, s, state, due)
  s.state, s.due, s.worker = state, due or 0, ''
  if state == AVAILABLE then
    redis.call('ZADD', ready, 0, place(job.queue, job.priority, job.seq))
  elseif state == PARKED then
    redis.call('ZADD', parked, 0, job.task .. '\0' .. job.seq)
  else
    redis.call('ZADD', delayed, due, job.seq)
    redis.call('ZADD', waiting, 0, job.seq)
  end
  if s.expires == 1 then
    redis.call('ZADD', expiring, job.expires, job.seq)
  end
  redis.call('HSET', live, job.seq, write_state(s))
  count(job.queue, state, 1)
end

-- Takes a waiting job out of where it waits.
local function unwait(job, s)
  if s.state == AVAILABLE then
    redis.call('ZREM', ready, place(job.queue, job.priority, job.seq))
  elseif s.state == PARKED then
    redis.call('ZREM', parked, job.task .. '\0' .. job.seq)
  else
    redis.call('ZREM', delayed, job.seq)
    redis.call('ZREM', waiting, job.seq)
  end
  if s.expires == 1 then
    redis.call('ZREM', expiring, job.seq)
  end
  count(job.queue, s.state, -1)
end

--- finish
-- The end of a job: state, finished, attempts, crashes, releases, claims, whether it has a time of its own to be kept,
-- worker, queue, reason; then what is known of the run, which only Python reads.
local function final_record(s, state, worker, keep, reason, body)
  return struct.pack('>BdddddBBc0Bc0Hc0', state, now, s.attempts, s.crashes, s.releases, s.claims, keep >= 0 and 1 or 0,
    #worker, worker, #s.queue, s.queue, #reason, reason) .. body
end

-- Ends a job that is in no other state by now.
local function finish(seq, s, state, worker, keep, reason, body)
  redis.call('HDEL', live, seq)
  redis.call('HSET', final, seq, final_record(s, state, worker, keep, reason, body))
  if keep >= 0 then
    redis.call('ZADD', kept, now + keep, seq)
  end
  if state == DEAD then
    redis.call('ZADD', dead, now, seq)
  else
    redis.call('ZADD', finished, now, seq)
  end
  if state ~= COMPLETED then
    redis.call('ZADD', ended, 0, seq)
  end
  count(s.queue, state, 1)
  if s.unique == 1 then
    let_go(read_job(seq, s), false)
  end
end

--- expire
-- Ends a waiting job that is past its expiry.
local function expire(seq)
  local s = read_state(redis.call('HGET', live, seq))
  unwait(read_job(seq, s), s)
  finish(seq, s, EXPIRED, '', -1, 'expired', '')
end

--- read_final
local function read_final(record, job)
  if not record then  -- another program has deleted it
    return {state = DEAD, finished_at = 0, attempts = 0, crashes = 0, releases = 0, claims = 0, keeps = 0, worker = '',
      queue = job and job.queue or ''}
  end
  local state, finished_at, attempts, crashes, releases, claims, keeps, worker, queue =
    struct.unpack('>BdddddBBc0Bc0', record)
  return {state = state, finished_at = finished_at, attempts = attempts, crashes = crashes, releases = releases,
    claims = claims, keeps = keeps, worker = worker, queue = queue}
end

--- holds
-- Notes how many jobs a worker runs, for those who list workers.
local function note_holds(worker)
  local n = redis.call('SCARD', claimed)
  if n > 0 then
    redis.call('HSET', holds, worker, n)
  else
    redis.call('HDEL', holds, worker)
  end
end

--- give_back
-- Releases a running claim, or cancels it if that was asked for.
local function give_back(seq, s)
  redis.call('SREM', claimed, seq)
  redis.call('HDEL', asked, seq)
  s.releases = s.releases + 1
  count(s.queue, RUNNING, -1)
  if redis.call('SREM', cancels, seq) == 1 then
    finish(seq, s, CANCELLED, '', -1, 'cancelled', '')
  else
    waits(read_job(seq, s), s, AVAILABLE)
  end
end

--- forget
-- Deletes all that is kept of a job but what it holds for a period, unless that is to be freed too.
local function forget(job, claims, free)
  for token = math.max(claims - KEPT_RUNS + 1, 1), claims do
    for _, part in ipairs({'a', 'e', 'l', 's'}) do
      redis.call('HDEL', runs, job.seq .. ':' .. token .. ':' .. part)
    end
  end
  redis.call('HDEL', ids, job.id)
  redis.call('HDEL', jobs, job.seq)
  redis.call('HDEL', live, job.seq)
  redis.call('HDEL', final, job.seq)
  redis.call('HDEL', errors, job.seq)
  redis.call('HDEL', progress, job.seq)
  redis.call('ZREM', finished, job.seq)
  redis.call('ZREM', dead, job.seq)
  redis.call('ZREM', kept, job.seq)
  redis.call('ZREM', ended, job.seq)
  if free and job.key ~= '' then
    let_go(job, true)
  end
end

--- note
-- Adds to what is known of a run: its end ('e'), log ('l') or stack ('s').
local function note(seq, token, attempt, worker, part, value)
  local field = seq .. ':' .. token .. ':'
  redis.call('HSET', runs, field .. 'a', attempt .. ':' .. worker, field .. part, value)
  local old = seq .. ':' .. (token - KEPT_RUNS) .. ':'
  redis.call('HDEL', runs, old .. 'a', old .. 'e', old .. 'l', old .. 's')
end

-- Whether a run has a log or a stack.
local function known(seq, token)
  local field = seq .. ':' .. token .. ':'
  return redis.call('HEXISTS', runs, field .. 'l') == 1 or redis.call('HEXISTS', runs, field .. 's') == 1
end

--- knows
-- Whether any worker knows a task.
local function is_known(task)
  return tonumber(redis.call('HGET', knows, task) or 0) > 0
end

-- Takes over which tasks a worker knows: names, each between two \1.
local function learn(worker, names)
  local before = redis.call('HGET', tasks, worker) or ''
  if before == names then
    return
  end
  for task in string.gmatch(before, '[^\1]+') do
    if redis.call('HINCRBY', knows, task, -1) <= 0 then
      redis.call('HDEL', knows, task)
    end
  end
  for task in string.gmatch(names, '[^\1]+') do
    redis.call('HINCRBY', knows, task, 1)
  end
  if names == '' then
    redis.call('HDEL', tasks, worker)
  else
    redis.call('HSET', tasks, worker, names)
  end
end

--- skew
-- By how much the server's clock has jumped, all in all. All processes of a host have the same steady clock: it tells how
-- much time has passed since the host's last call; where the server's says otherwise by more than two seconds it has jumped.
local function jumped(boot, own)
  local skew = tonumber(redis.call('HGET', meta, 'skew') or 0)
  local before = redis.call('HGET', steadies, boot)
  if before then
    local own_then, steady_then = struct.unpack('>dd', before)
    local off = now - skew - steady_then - (own - own_then)
    if off > 2000 or off < -2000 then
      return skew + off, true
    end
  end
  return skew, false
end

--- steady
-- The server's clock without its jumps, for leases.
local function steady(boot, own)
  local skew, new = jumped(boot, own)
  if new then
    redis.call('HSET', meta, 'skew', skew)
  end
  redis.call('HSET', steadies, boot, struct.pack('>dd', own, now - skew))
  return now - skew
end

--- enqueue
-- What enqueue and enqueue_over do. Only the latter can expire jobs: the keys and functions for that would cost each delay() a tenth.
local n = #ARGV - 1
local reply, new_ids, new_jobs, new_ready, new_live, seen = {}, {}, {}, {}, {}, {}
local new_delayed, new_waiting, new_expiring, new_queues = {}, {}, {}, {}
local new_held, last, known = {}, nil, {}
-- For each unique key the job of this call that holds it, if that came past its expiry; and all whose keys others take.
local late, over = {}, nil

-- The number of the first job. After everything was deleted numbers go on above those of jobs that may still run.
local function first()
  local start = redis.call('HINCRBY', meta, 'seq', n) - n + 1
  if start == 1 then
    start = math.floor(now) * 100
    redis.call('HSET', meta, 'seq', string.format('%d', start + n - 1), 'base', string.format('%d', start))
  end
  return start
end

local function read(expire)
  for i = 1, n do
    local argument = ARGV[i + 1]
    local delay, due, ttl, expires, length = struct.unpack('>ddddH', argument)
    local priority, queue, task, key, scope, period, id = struct.unpack('>hBc0Hc0Hc0BdBc0', argument, 35)
    if seen[id] or redis.call('HEXISTS', ids, id) == 1 then
      reply[i] = id
    else
      local held_by, past
      if key ~= '' then
        held_by, past = holder(key)
        if late[key] then held_by, past = nil, late[key] end
      end
      if past then
        over = over or {}
        over[#over + 1] = past
        if not expire then return end
      end
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
          late[key] = scope ~= PERIOD and expires >= 0 and expires <= now and seq
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

local function write(expire)
  chunks('HSET', jobs, new_jobs)
  chunks('HSET', live, new_live)
  chunks('ZADD', ready, new_ready)
  chunks('ZADD', delayed, new_delayed)
  chunks('ZADD', waiting, new_waiting)
  chunks('ZADD', expiring, new_expiring)
  chunks('SADD', queues, new_queues)
  chunks('HSET', ids, new_ids)
  for _, seq in ipairs(over or {}) do expire(seq) end
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

local function enqueue(expire)
  local done, why = pcall(read, expire)
  if done and over and not expire then
    undo()
    return {}
  end
  if done and last then
    done, why = pcall(write, expire)
  end
  if not done then
    undo()
    return redis.error_reply('-' .. (type(why) == 'table' and why.err or why))
  end
  if last then
    redis.pcall('PUBLISH', bell .. ':w', '')
  end
  if over then
    redis.pcall('PUBLISH', bell .. ':c', '')
  end
  return reply
end
