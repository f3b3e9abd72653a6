-- keys: claimed
-- ARGV: now
return redis.call('SCARD', claimed)
