-- keys: meta ids jobs live final finished dead ended kept counts unique periods errors progress runs reaped bell
-- parts: anyway constants now states job state counts unique read_final forget
-- ARGV: now, at most so many, then for finished and for dead jobs: age, most
-- Returns how many were deleted.
local limit = tonumber(ARGV[2])
local doomed, chosen = {}, {}

local function choose(seq)
  if not chosen[seq] then
    chosen[seq] = true
    doomed[#doomed + 1] = seq
  end
end

local look = limit * 4 + 100
for _, seq in ipairs(redis.call('ZRANGEBYSCORE', kept, '-inf', now, 'LIMIT', 0, look)) do
  choose(seq)
end
for i, key in ipairs({finished, dead}) do
  local age, most = tonumber(ARGV[1 + 2 * i]), tonumber(ARGV[2 + 2 * i])
  for _, seq in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', now - age, 'LIMIT', 0, look)) do
    if not redis.call('ZSCORE', kept, seq) then choose(seq) end
  end
  local excess = redis.call('ZCARD', key) - #doomed - most
  if excess > 0 then
    for _, seq in ipairs(redis.call('ZRANGE', key, 0, math.min(excess + #doomed, look) - 1)) do
      if excess > 0 and not chosen[seq] then
        choose(seq)
        excess = excess - 1
      end
    end
  end
end
table.sort(doomed)
local deleted = 0
for i = 1, math.min(limit, #doomed) do
  local seq = doomed[i]
  local job, record = read_job(seq), redis.call('HGET', final, seq)
  if job and record then
    local f = read_final(record)
    count(f.queue, f.state, -1)
    forget(job, f.claims, false)
    deleted = deleted + 1
  else
    redis.call('ZREM', finished, seq)
    redis.call('ZREM', dead, seq)
    redis.call('ZREM', kept, seq)
    redis.call('ZREM', ended, seq)
  end
end
for _, key in ipairs(redis.call('ZRANGEBYSCORE', periods, '-inf', now, 'LIMIT', 0, limit)) do
  local held = redis.call('HGET', unique, key)
  if held then
    local scope, _, stop = struct.unpack('>Bc15d', held)
    if scope == PERIOD and stop <= now then redis.call('HDEL', unique, key) end
  end
  redis.call('ZREM', periods, key)
end
redis.call('ZREMRANGEBYSCORE', reaped, '-inf', now - 86400000)
store_counts()
return deleted
