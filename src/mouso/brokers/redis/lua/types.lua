-- keys: meta ids jobs live final ready delayed waiting expiring parked finished dead ended kept errors progress runs unique
--   periods cancels asked queues counts pauses workers holds beats leases_until steadies tasks knows passing reaped
-- ARGV: now
-- Returns the type of each key, and how much it holds.
local reply = {}
local sizes = {hash = 'HLEN', zset = 'ZCARD', set = 'SCARD'}
for i, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  reply[2 * i - 1] = kind
  reply[2 * i] = sizes[kind] and redis.call(sizes[kind], key) or 0
end
return reply
