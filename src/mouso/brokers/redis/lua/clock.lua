-- keys: meta
-- parts: now
-- ARGV: now
-- Returns the server's instant.
return string.format('%d', now)
