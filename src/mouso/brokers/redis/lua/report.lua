-- keys: live progress runs asked bell
-- parts: constants now states state note
-- ARGV: now, worker, then of each update: key, token, progress, log, stack ('': as it is)
-- Returns which updates were fenced, by number.
local fenced = {}
for i = 3, #ARGV, 5 do
  local seq, token = ARGV[i], tonumber(ARGV[i + 1])
  local record = redis.call('HGET', live, seq)
  local s = record and read_state(record)
  if not s or s.state ~= RUNNING or s.claims ~= token or s.worker ~= ARGV[2] then
    fenced[#fenced + 1] = (i + 2) / 5
  else
    if ARGV[i + 2] ~= '' then
      redis.call('HSET', progress, seq, ARGV[i + 2])
    end
    if ARGV[i + 3] ~= '' then
      note(seq, token, s.attempts + 1, ARGV[2], 'l', ARGV[i + 3])
    end
    if ARGV[i + 4] ~= '' then
      note(seq, token, s.attempts + 1, ARGV[2], 's', struct.pack('>d', now) .. ARGV[i + 4])
      redis.call('HDEL', asked, seq)
    end
  end
end
redis.pcall('PUBLISH', bell .. ':c', '')
return fenced
