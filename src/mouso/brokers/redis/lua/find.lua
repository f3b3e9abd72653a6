-- keys: meta ids jobs live final
-- parts: chunks states job state read_final
-- ARGV: now, id to begin after or '', seq to go on before or '', states as ',3,4,', queue or '', task or '',
--   at most so many, at most so many to look at
-- Returns the seq to go on before (0: there are no more), and the seqs that fit, the highest first.
local before = tonumber(ARGV[3])
if not before then
  if ARGV[2] ~= '' then
    before = tonumber(redis.call('HGET', ids, ARGV[2]) or 0)
  else
    before = tonumber(redis.call('HGET', meta, 'seq') or 0) + 1
  end
end
local limit, left = tonumber(ARGV[7]), tonumber(ARGV[8])
local reply = {0}
while before > 1 and left > 0 and #reply <= limit do
  local seqs = {}
  for seq = before - 1, math.max(before - math.min(500, left), 1), -1 do
    seqs[#seqs + 1] = seq
  end
  local lives, ends = fetch(live, seqs), fetch(final, seqs)
  for i, seq in ipairs(seqs) do
    local s = lives[i] and read_state(lives[i]) or ends[i] and read_final(ends[i])
    before = seq
    if s and string.find(ARGV[4], ',' .. s.state .. ',', 1, true) and (ARGV[5] == '' or s.queue == ARGV[5]) then
      local job = ARGV[6] ~= '' and read_job(seq)
      if not job or job.task == ARGV[6] then
        reply[#reply + 1] = seq
        if #reply > limit then break end
      end
    end
  end
  left = left - #seqs
end
reply[1] = before > 1 and before or 0
return reply
