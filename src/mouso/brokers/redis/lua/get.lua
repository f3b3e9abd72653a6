-- keys: ids jobs live final errors progress cancels
-- parts: states
-- ARGV: now, 'full' (with errors) or '', then ids, or seqs as numbers after '#'
-- Returns for each: seq, job (another program may have deleted it), state, end, progress, whether it is to be cancelled, errors; false where there is nothing.
local reply = {}
for i = 3, #ARGV do
  local seq = string.byte(ARGV[i]) == 35 and string.sub(ARGV[i], 2) or redis.call('HGET', ids, ARGV[i])
  if seq then
    reply[i - 2] = {seq, redis.call('HGET', jobs, seq), redis.call('HGET', live, seq), redis.call('HGET', final, seq),
      redis.call('HGET', progress, seq), redis.call('SISMEMBER', cancels, seq),
      ARGV[2] == 'full' and redis.call('HGET', errors, seq) or ''}
  else
    reply[i - 2] = ''
  end
end
return reply
