-- keys: meta ids jobs live ready delayed waiting expiring counts unique periods queues bell
-- parts: now states chunks job state counts unique enqueue
-- ARGV: now, then each job: delay, due, ttl, expires (-1: none), length of the header, header, body.
-- Returns for each job '' if it is stored now, else the id of the one that is there; or nothing, having done nothing, if a job waits
-- past its expiry that has a unique key of theirs: that is for enqueue_over.
return enqueue(nil)
