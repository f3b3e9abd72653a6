-- keys: meta ids jobs live ready delayed waiting expiring parked counts unique periods queues final finished dead ended kept bell
-- parts: now states chunks job state counts unique waits finish expire enqueue
-- ARGV: now, then each job: delay, due, ttl, expires (-1: none), length of the header, header, body.
-- Returns for each job '' if it is stored now, else the id of the one that is there. What waits past its expiry, and has a unique key
-- of theirs, expires.
return enqueue(expire)
