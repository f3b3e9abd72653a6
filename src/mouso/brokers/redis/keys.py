"""The keys of an application namespace: this table is what scripts, ``mouso doctor`` and the documentation go by.

Every key begins with ``mouso:{namespace}:``, so that a cluster holds all of them in one place. ``seq`` is a job's
key: 15 digits, the higher the later it was enqueued. Instants are milliseconds since the epoch.
"""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """What there is under a key.

    Attributes:
        kind: As Redis calls it.
        holds: For people.
    """

    kind: str
    holds: str


KEYS = {
    "meta": Key("hash", "the last seq and the first, whose turn it is, by how much the server's clock has jumped"),
    "ids": Key("hash", "id → seq, of every job"),
    "jobs": Key("hash", "seq → what its producer gave: times, queue, task, unique key, payload"),
    "live": Key("hash", "seq → state, counters, worker, of each job that has not ended"),
    "final": Key("hash", "seq → state, counters, times, reason and result, of each job that has ended"),
    "ready": Key("zset", "available jobs: queue, priority and seq, in the order to claim them"),
    "delayed": Key("zset", "seq of scheduled and retryable jobs, by when they are due"),
    "waiting": Key("zset", "the same jobs, by seq"),
    "expiring": Key("zset", "seq of waiting jobs, by when they expire"),
    "parked": Key("zset", "task and seq of jobs whose task no worker knows"),
    "claimed": Key("set", "claimed:WORKER: seq of its running jobs"),
    "finished": Key("zset", "seq of completed, cancelled and expired jobs, by when they ended"),
    "dead": Key("zset", "seq of dead jobs, by when they ended"),
    "ended": Key("zset", "seq of cancelled, expired and dead jobs, by seq"),
    "kept": Key("zset", "seq of ended jobs with a time of their own to be kept, by when it is over"),
    "errors": Key("hash", "seq → the errors of its failed attempts"),
    "progress": Key("hash", "seq → its last progress"),
    "runs": Key("hash", "seq and claim → how it ended, what it logged, its stack"),
    "unique": Key("hash", "unique key → the job that holds it"),
    "periods": Key("zset", "unique keys that are held for a time, by when it is over"),
    "cancels": Key("set", "seq of running jobs that somebody asked to cancel"),
    "asked": Key("hash", "seq → claim of running jobs whose stack was asked for"),
    "queues": Key("set", "names of all queues"),
    "counts": Key("hash", "queue and state → how many jobs"),
    "pauses": Key("hash", "paused queue → until when"),
    "workers": Key("hash", "worker → how it describes itself"),
    "holds": Key("hash", "worker → how many jobs it runs"),
    "beats": Key("hash", "worker → when it was last heard of"),
    "leases_until": Key("zset", "workers, by when their lease ends on the steady clock"),
    "steadies": Key("hash", "boot id → the host's steady clock and the server's, when they were last compared"),
    "tasks": Key("hash", "worker → the tasks that it knows"),
    "knows": Key("hash", "task → how many workers know it"),
    "passing": Key("hash", "worker and queue → up to where it has passed by jobs that others know"),
    "reaped": Key("zset", "workers whose lease had ended, by when that was found"),
    "bell": Key("none", "bell:w, bell:c: channels on which workers and waiting callers hear that something is new"),
}
