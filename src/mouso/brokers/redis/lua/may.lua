-- keys: meta
-- ARGV: now, then commands, each with its key ('': none in particular).
-- Returns what this user may not do, as text.
local reply = {}
for i = 2, #ARGV, 2 do
  local command, key = ARGV[i], ARGV[i + 1]
  local may
  if key == '' then
    may = redis.acl_check_cmd(command)
  else
    may = redis.acl_check_cmd(command, key)
  end
  if not may then
    reply[#reply + 1] = key == '' and command or command .. ' ' .. key
  end
end
return reply
