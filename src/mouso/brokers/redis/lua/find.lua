-- keys: meta ids jobs live final ready waiting parked ended
-- parts: now chunks states job state read_final
-- ARGV: now, id to begin after or '', seq to go on before or '', states as ',3,4,', queue or '', task or '',
--   at most so many, at most so many to look at, then seqs of running jobs
-- Returns the seq to go on before ('': there are no more), and the seqs that fit, the highest first.
--
-- States that few jobs are in have a set of their own, which is looked through. If completed jobs are wanted, or one of the
-- others is that of very many, it is quicker to walk down all numbers: many of them will fit.
local FEW, STEP = 10000, 500
local limit, left = tonumber(ARGV[7]), tonumber(ARGV[8])
local before = ARGV[3]
if before == '' then
  before = ARGV[2] ~= '' and (redis.call('HGET', ids, ARGV[2]) or '') or string.rep('9', 15)
end

local function wanted(state)
  return string.find(ARGV[4], ',' .. state .. ',', 1, true)
end

-- The seqs of all jobs that may fit, the highest first; or nothing if these are too many.
local function candidates()
  if wanted(COMPLETED) or wanted(AVAILABLE) and redis.call('ZCARD', ready) > FEW or
      wanted(PARKED) and redis.call('ZCARD', parked) > FEW then
    return nil
  end
  local found = {}
  local function add(members)
    for _, member in ipairs(members) do
      local seq = string.sub(member, -15)
      if seq < before then found[#found + 1] = seq end
    end
  end
  if wanted(AVAILABLE) then add(redis.call('ZRANGE', ready, 0, -1)) end
  if wanted(PARKED) then add(redis.call('ZRANGE', parked, 0, -1)) end
  local top = '(' .. before
  if wanted(SCHEDULED) or wanted(RETRYABLE) then
    add(redis.call('ZREVRANGEBYLEX', waiting, top, '-', 'LIMIT', 0, left))
  end
  if wanted(CANCELLED) or wanted(EXPIRED) or wanted(DEAD) then
    add(redis.call('ZREVRANGEBYLEX', ended, top, '-', 'LIMIT', 0, left))
  end
  for i = 9, #ARGV do
    if ARGV[i] < before then found[#found + 1] = ARGV[i] end
  end
  table.sort(found, function(a, b) return a > b end)
  return found
end

local reply = {''}
-- Adds those that fit; returns whether there is room for more.
local function choose(seqs)
  local lives, ends = fetch(live, seqs), fetch(final, seqs)
  for i, seq in ipairs(seqs) do
    before = seq
    local s = lives[i] and read_state(lives[i]) or ends[i] and read_final(ends[i])
    if s and wanted(s.state) and (ARGV[5] == '' or s.queue == ARGV[5]) then
      local job = ARGV[6] ~= '' and read_job(seq)
      if not job or job.task == ARGV[6] then
        reply[#reply + 1] = seq
        if #reply > limit then return false end
      end
    end
  end
  left = left - #seqs
  return left > 0
end

if before ~= '' then
  local found = candidates()
  if found then
    for start = 1, #found, STEP do
      local seqs = {}
      for i = start, math.min(start + STEP - 1, #found) do
        seqs[#seqs + 1] = found[i]
      end
      if not choose(seqs) then
        reply[1] = before
        break
      end
    end
  else
    local bottom = tonumber(redis.call('HGET', meta, 'base') or 1)
    local next = math.min(tonumber(before), tonumber(redis.call('HGET', meta, 'seq') or 0) + 1)
    while next > bottom do
      local seqs = {}
      for seq = next - 1, math.max(next - STEP, bottom), -1 do
        seqs[#seqs + 1] = string.format('%015d', seq)
      end
      next = next - #seqs
      if not choose(seqs) then
        reply[1] = before
        break
      end
    end
  end
end
return reply
