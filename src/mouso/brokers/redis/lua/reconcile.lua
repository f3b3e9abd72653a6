-- keys: meta jobs live ready delayed waiting expiring parked counts unique final finished dead ended kept claimed holds cancels asked bell
-- parts: anyway now states job state counts unique waits finish give_back holds
-- ARGV: now, worker, then key and token of each claim that the worker knows of
-- Returns which of them are not its running claims, by number.
local held, gone = {}, {}
for i = 3, #ARGV, 2 do
  local seq, token = ARGV[i], tonumber(ARGV[i + 1])
  local record = redis.call('SISMEMBER', claimed, seq) == 1 and redis.call('HGET', live, seq)
  if record and read_state(record).claims == token then
    held[seq] = true
  else
    gone[#gone + 1] = (i - 1) / 2
  end
end
local back = false
for _, seq in ipairs(redis.call('SMEMBERS', claimed)) do
  if not held[seq] then
    local record = redis.call('HGET', live, seq)
    if record then
      give_back(seq, read_state(record))
      back = true
    else
      redis.call('SREM', claimed, seq)
    end
  end
end
store_counts()
note_holds(ARGV[2])
if back then
  redis.pcall('PUBLISH', bell .. ':w', '')
  redis.pcall('PUBLISH', bell .. ':c', '')
end
return gone
