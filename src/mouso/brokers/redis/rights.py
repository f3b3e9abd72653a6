"""What users of a Redis server must be allowed to do, at the least: the rules of its access control lists."""

from __future__ import annotations

import re

from mouso.brokers.redis.scripts import load

_DOCTOR = ("clock", "types", "overdue", "verify", "unheld")
_READS = ("get", "look", "runs", "find", "claims", "queues", "workers", *_DOCTOR)
_OPERATES = ("cancel", "retry", "delete", "pause", "purge", "ask_stack")
ROLES = {
    "producer": ("enqueue", "enqueue_over", "get", "look", "runs", "cancel", "retry"),
    "worker": tuple(load()),
    "dashboard": _READS,
    "operator": _READS + _OPERATES,
}
"""Role → scripts that it calls.

Producers enqueue and follow their jobs; a dashboard looks only; an operator cancels, retries, deletes, pauses as well.
"""

_CONNECT = ("evalsha", "script|load", "subscribe", "info", "client|setname")
_WORDS = {"LIMIT", "WITHSCORES", "COUNT"}


def rule(role: str, namespace: str = "default") -> str:
    """What follows the name and the password of a user in ``ACL SETUSER``.

    The rule for producers has what ``?wait=`` takes.
    """
    scripts = load()
    called = {word for name in ROLES[role] for word in re.findall(r"'([A-Z]{3,})'", scripts[name].source)} - _WORDS
    if role == "producer":
        called |= {"WAIT", "HSET"}
    commands = [*_CONNECT, *sorted(word.lower() for word in called)]
    return " ".join(
        [f"~mouso:{{{namespace}}}:*", f"&mouso:{{{namespace}}}:bell:*", *(f"+{command}" for command in commands)]
    )
