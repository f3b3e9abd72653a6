-- keys: meta jobs live ready delayed waiting expiring parked counts unique final finished dead ended kept errors runs claimed holds
--   cancels asked knows tasks pauses passing workers leases_until beats steadies bell
-- parts: anyway constants now states chunks job state counts unique waits finish note knows skew steady holds
-- ARGV: now, boot id and steady clock of the caller, worker, outcomes, limit, names of the tasks that it can run, each between two \1 ('': all),
--   queue, share, … (none: every queue)
-- Returns which outcomes were fenced, by number; tasks that were parked; ms until a job is due (-1: none); claimed jobs, packed; whether
-- there is more to look at (1).
local worker, outcomes, limit, able = ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7]

-- Settles. An outcome: 1 for completed, key as text, token, keep (-1: none), body, log; or 2 for another end: key, token, state,
-- counter to charge (0..3), whether it ran, delay, keep, reason, body, error, run, log. What there is not is empty.
local fenced, at, entries, keys = {}, 1, {}, {}
while at <= #outcomes do
  local o = {}
  o.kind, at = struct.unpack('>B', outcomes, at)
  if o.kind == 1 then
    o.key, o.token, o.keep, o.body, o.log, at = struct.unpack('>c15ddIc0Ic0', outcomes, at)
    o.state = COMPLETED
  else
    o.key, o.token, o.state, o.charge, o.ran, o.delay, o.keep, o.reason, o.body, o.error, o.run, o.log, at =
      struct.unpack('>c15dBBBddHc0Ic0Ic0Ic0Ic0', outcomes, at)
  end
  entries[#entries + 1] = o
  keys[#keys + 1] = o.key
end
if #entries > 0 then
  local records = fetch(live, keys)
  local settled, over, ended, gone, aged = {}, {}, {}, {}, {}
  for i, o in ipairs(entries) do
    local record = records[i]
    local s = record and read_state(record)
    if not s or s.state ~= RUNNING or s.claims ~= o.token or s.worker ~= worker or over[o.key] then
      fenced[#fenced + 1] = i
    else
      over[o.key] = true
      settled[#settled + 1] = o.key
      count(s.queue, RUNNING, -1)
      if o.log ~= '' then
        note(o.key, o.token, s.attempts + 1, worker, 'l', o.log)
      end
      if o.kind == 1 then
        gone[#gone + 1] = o.key
        ended[#ended + 1] = o.key
        ended[#ended + 1] = final_record(s, COMPLETED, worker, o.keep, '', o.body)
        aged[#aged + 1] = now
        aged[#aged + 1] = o.key
        if o.keep >= 0 then
          redis.call('ZADD', kept, now + o.keep, o.key)
        end
        count(s.queue, COMPLETED, 1)
        if s.unique == 1 then
          let_go(read_job(o.key, s), false)
        end
      else
        if o.ran == 1 or o.log ~= '' or known(o.key, o.token) then
          note(o.key, o.token, s.attempts + 1, worker, 'e', o.run)
        end
        if o.error ~= '' then
          redis.call('HSET', errors, o.key,
            (redis.call('HGET', errors, o.key) or '') .. struct.pack('>dI', now, #o.error) .. o.error)
        end
        if o.charge == 1 then s.attempts = s.attempts + 1 end
        if o.charge == 2 then s.crashes = s.crashes + 1 end
        if o.charge == 3 then s.releases = s.releases + 1 end
        if o.state ~= CANCELLED and redis.call('SISMEMBER', cancels, o.key) == 1 then
          finish(o.key, s, CANCELLED, worker, o.keep, 'cancelled', o.body)
        elseif o.state >= COMPLETED then
          finish(o.key, s, o.state, worker, o.keep, o.reason, o.body)
        else
          waits(read_job(o.key, s), s, o.state, now + o.delay)
        end
      end
    end
  end
  chunks('HDEL', live, gone)
  chunks('HSET', final, ended)
  chunks('ZADD', finished, aged)
  chunks('SREM', claimed, settled)
  if redis.call('EXISTS', asked, cancels) > 0 then
    chunks('HDEL', asked, settled)
    chunks('SREM', cancels, settled)
  end
end

-- Claims.
local PASSED, AGAIN = 20000, 1000
local leases, parked_tasks, verdicts, unseen = {}, {}, {}, false
local claims, places, mine = {}, {}, {}

-- What to do with a task: take it, leave it to whoever knows it, or park it.
local function verdict(task)
  if able == '' or string.find(able, '\1' .. task .. '\1', 1, true) then
    return 'take'
  end
  if is_known(task) then
    return 'leave'
  end
  parked_tasks[#parked_tasks + 1] = task
  return 'park'
end

-- Claims from a queue. Jobs that are not for this worker now are passed by, so many in a call; the next one goes on where this
-- one ended, but for a second only: then what was put before that comes first again.
local function claim(queue, share)
  local taken, passed, spot = 0, 0, worker .. '\0' .. queue
  local mark, from = redis.call('HGET', passing, spot), '[' .. queue .. '\0'
  if mark and struct.unpack('>d', mark) > now then
    from = string.sub(mark, 9)
  end
  while taken < share and passed < PASSED do
    local want = math.min(share - taken, 1000)
    local found = redis.call('ZRANGEBYLEX', ready, from, '(' .. queue .. '\1', 'LIMIT', 0, want)
    local seqs = {}
    for i, member in ipairs(found) do
      seqs[i] = string.sub(member, -15)
    end
    local records, states_of = fetch(jobs, seqs), fetch(live, seqs)
    for i, seq in ipairs(seqs) do
      local record, s = records[i], states_of[i] and read_state(states_of[i])
      if not record or not s then  -- another program has deleted a part of it
        redis.call('ZREM', ready, found[i])
        if s then
          count(queue, AVAILABLE, -1)
          s.unique = 0
          finish(seq, s, DEAD, '', -1, 'missing_body', '')
        end
      else
        local _, _, expires, priority, _, task = struct.unpack('>HddhBc0Hc0', record)
        if s.expires == 0 or expires > now then
          verdicts[task] = verdicts[task] or verdict(task)
          if verdicts[task] == 'take' then
            s.state, s.claims, s.worker = RUNNING, s.claims + 1, worker
            if s.fresh == 1 then
              s.fresh = 0
              if s.unique == 1 then
                local job = read_job(seq)
                if job.scope == QUEUED then let_go(job, false) end
              end
            end
            if s.expires == 1 then
              redis.call('ZREM', expiring, seq)
            end
            claims[#claims + 1] = seq
            claims[#claims + 1] = write_state(s)
            places[#places + 1] = found[i]
            mine[#mine + 1] = seq
            leases[#leases + 1] = struct.pack('>c15dddddI', seq, s.claims, s.attempts, s.crashes, s.releases,
              s.expires == 1 and expires - now or -1, #record)
            leases[#leases + 1] = record
            taken = taken + 1
          elseif verdicts[task] == 'leave' then
            passed = passed + 1
          elseif verdicts[task] == 'park' then
            local job = read_job(seq)
            unwait(job, s)
            waits(job, s, PARKED)
          end
        end
      end
    end
    if taken > 0 then
      count(queue, AVAILABLE, -#mine)
      count(queue, RUNNING, #mine)
      chunks('HSET', live, claims)
      chunks('ZREM', ready, places)
      chunks('SADD', claimed, mine)
      claims, places, mine = {}, {}, {}
    end
    from = #found == want and '(' .. found[#found]
    if not from then
      break
    end
  end
  if passed >= PASSED and from then
    redis.call('HSET', passing, spot, struct.pack('>d', now + AGAIN) .. from)
    unseen = true
  elseif mark and not from then
    redis.call('HDEL', passing, spot)
  end
  limit = limit - taken
  return taken
end

local function paused(queue)
  local stop = redis.call('HGET', pauses, queue)
  return stop and (stop == '' or tonumber(stop) > now)
end

-- Queues with available jobs, from the one whose turn it is, at most as many as there are jobs to claim.
local function turns()
  local found, turn = {}, redis.call('HGET', meta, 'turn') or ''
  local from, wrapped = '(' .. turn .. '\1', turn == ''
  while #found < limit do
    local member = redis.call('ZRANGEBYLEX', ready, from, '+', 'LIMIT', 0, 1)[1]
    local queue = member and string.match(member, '^[^%z]*')
    if not member or (wrapped and turn ~= '' and queue > turn) then
      if wrapped then break end
      wrapped, from = true, '-'
    else
      if not paused(queue) then
        found[#found + 1] = queue
      end
      from = '(' .. queue .. '\1'
    end
  end
  return found
end

if limit > 0 then
  local shares = {}
  if #ARGV > 7 then
    for i = 8, #ARGV, 2 do
      if not paused(ARGV[i]) then
        shares[#shares + 1] = {ARGV[i], tonumber(ARGV[i + 1])}
      end
    end
  else
    local names = turns()
    local share = math.ceil(limit / math.max(#names, 1))
    for _, name in ipairs(names) do
      shares[#shares + 1] = {name, share}
    end
    if #names > 0 then
      redis.call('HSET', meta, 'turn', names[#names])
    end
  end
  local more = {}
  for _, of in ipairs(shares) do
    local share = math.min(of[2], limit)
    if share <= 0 or claim(of[1], share) == share then
      more[#more + 1] = of[1]
    end
  end
  for _, queue in ipairs(more) do
    if limit > 0 then claim(queue, limit) end
  end
  if #leases > 0 and redis.call('HEXISTS', workers, worker) == 0 then
    redis.call('HSET', workers, worker, '')
    redis.call('HSET', beats, worker, now)
    redis.call('ZADD', leases_until, steady(ARGV[2], tonumber(ARGV[3])) + LEASE, worker)
  end
end
store_counts()
if #entries > 0 or #leases > 0 then
  note_holds(worker)
end
if #entries > 0 then
  redis.pcall('PUBLISH', bell .. ':c', '')
end
local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
local due = first[2] and math.max(first[2] - now, 0) or -1
return {fenced, parked_tasks, due, table.concat(leases), unseen and 1 or 0}
