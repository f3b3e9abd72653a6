-- keys: delayed expiring finished dead
-- parts: now
-- ARGV: now, by how much a job must be late, the oldest age of finished and of dead jobs
-- Returns how many jobs should have expired, be available, or be deleted by now.
local late = now - tonumber(ARGV[2])
return {
  redis.call('ZCOUNT', expiring, '-inf', late),
  redis.call('ZCOUNT', delayed, '-inf', late),
  redis.call('ZCOUNT', finished, '-inf', now - tonumber(ARGV[3])) + redis.call('ZCOUNT', dead, '-inf', now - tonumber(ARGV[4])),
}
