-- keys: meta leases_until steadies
-- parts: now skew steady
-- ARGV: now, boot id and steady clock of the caller
-- Returns the steady instant, and the workers whose lease has ended by then, earliest first.
local instant = steady(ARGV[2], tonumber(ARGV[3]))
local reply = redis.call('ZRANGEBYSCORE', leases_until, '-inf', instant)
table.insert(reply, 1, string.format('%d', instant))
return reply
