-- keys: queues pauses bell
-- ARGV: now, queue, instant until which it is paused ('': for ever), or 'resume'
if ARGV[3] == 'resume' then
  redis.call('HDEL', pauses, ARGV[2])
  redis.pcall('PUBLISH', bell .. ':w', '')
else
  redis.call('SADD', queues, ARGV[2])
  redis.call('HSET', pauses, ARGV[2], ARGV[3])
end
return 1
