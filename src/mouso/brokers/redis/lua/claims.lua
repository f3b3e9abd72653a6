-- keys: claimed
-- ARGV: now
-- Returns the seqs of a worker's running jobs.
return redis.call('SMEMBERS', claimed)
