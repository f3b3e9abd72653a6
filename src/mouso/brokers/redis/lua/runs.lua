-- keys: ids live final runs
-- parts: constants states state read_final
-- ARGV: now, id
-- Returns claims, state, then of each run: token, 'attempt:worker', end, log, stack.
local seq = redis.call('HGET', ids, ARGV[2])
local record = seq and redis.call('HGET', live, seq)
local s = record and read_state(record) or seq and read_final(redis.call('HGET', final, seq))
if not s then
  return {}
end
local reply = {}
for token = math.max(s.claims - KEPT_RUNS + 1, 1), s.claims do
  local field = seq .. ':' .. token .. ':'
  local found = redis.call('HMGET', runs, field .. 'a', field .. 'e', field .. 'l', field .. 's')
  if found[2] or found[3] or found[4] then
    reply[#reply + 1] = token
    for part = 1, 4 do
      reply[#reply + 1] = found[part] or ''
    end
  end
end
return reply
