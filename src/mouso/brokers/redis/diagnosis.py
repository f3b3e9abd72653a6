"""What is wrong with a Redis server, or about to be: its settings, and what is under our keys. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator

from mouso.brokers.base import Finding, Level, Retention
from mouso.brokers.redis.facts import Facts
from mouso.brokers.redis.keys import KEYS
from mouso.brokers.redis.link import Link
from mouso.clock import SYSTEM, Clock
from mouso.errors import BrokerError, ConfigError

_FULL = 0.8
_SKEW = 2000
_LATE = 10_000
_UNPRUNED = 2 * 3_600_000
_STEP = 1000

Findings = Iterator[Finding]


def examine(
    link: Link, url: str, prefix: str, clock: Clock, retention: Retention, *, full: bool
) -> tuple[list[Finding], bool]:
    """Looks at everything; returns what was found, and whether jobs can be read."""
    findings: list[Finding] = []
    try:
        kinds = link.call("types", "", timeout=3.0)
        findings += _server(link.facts, url)
        foreign = [*_foreign(link, prefix, kinds)]
        findings += foreign
        if not foreign:
            findings += _clock(link)
            findings += _upkeep(link, clock, retention)
            if full:
                findings += _consistency(link)
        return findings, not foreign
    except (BrokerError, ConfigError) as error:
        remedy = "check the URL, that the server runs, and that this user may use it"
        return [*findings, Finding(Level.ERROR, "server", str(error), remedy)], False


def _server(facts: Facts | None, url: str) -> Findings:
    if facts is None:
        what = f"{url} answers; this user may not ask what it is"
        yield Finding(Level.INFO, "server", what, "allow INFO to let doctor look at memory, persistence and eviction")
        return
    yield Finding(Level.OK, "server", f"{facts.name} {facts.version} answers at {url}")
    what, remedy = facts.refusal(evicts=False)
    if what:
        yield Finding(Level.WARNING, "eviction", what, remedy)
    else:
        yield Finding(Level.OK, "eviction", "no key is deleted for want of memory (noeviction)")
    if facts.durable:
        yield Finding(Level.OK, "durability", "there is an append-only file")
    else:
        what = "there is no append-only file: a crash of the server loses jobs that were accepted"
        yield Finding(Level.WARNING, "durability", what, "set appendonly yes")
    if facts.unwritten:
        what = f"the server could not write {facts.unwritten} to its disk the last time"
        remedy = "make room, and look at the server's log: it may refuse to change anything until then"
        yield Finding(Level.ERROR, "disk", what, remedy)
    if facts.limit and facts.used > facts.limit * _FULL:
        what = f"{facts.used / facts.limit:.0%} of the memory is used ({facts.used:,} of {facts.limit:,} bytes)"
        level = Level.ERROR if facts.used >= facts.limit else Level.WARNING
        yield Finding(level, "memory", what, "raise maxmemory, or keep finished jobs and results for a shorter time")
    else:
        yield Finding(Level.OK, "memory", f"{facts.used:,} bytes are used")


def _foreign(link: Link, prefix: str, kinds: list[bytes]) -> Findings:
    for name, kind in zip(link.scripts["types"].keys, (kind.decode() for kind in kinds[::2]), strict=True):
        if kind not in ("none", KEYS[name].kind):
            what = f"another program has put a {kind} under the key {prefix}{name}"
            yield Finding(Level.ERROR, "keys", what, "delete or rename that key, or use another ?namespace=")


def _clock(link: Link) -> Findings:
    before = SYSTEM.now()
    server = int(link.call("clock", ""))
    ahead = server - SYSTEM.now() if server > SYSTEM.now() else min(server - before, 0)
    if abs(ahead) > _SKEW:
        what = (
            f"the server's clock is {abs(ahead) / 1000:,.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
        )
        yield Finding(Level.WARNING, "clock", what, "jobs are due and expire by the server's clock; set the wrong one")
    else:
        yield Finding(Level.OK, "clock", "the server's clock agrees with this machine's")


def _upkeep(link: Link, clock: Clock, retention: Retention) -> Findings:
    """What any worker does in passing, and must have done."""
    now = "" if clock is SYSTEM else clock.now()
    expired, due, old = link.call("overdue", now, _LATE, retention.finished + _UNPRUNED, retention.dead + _UNPRUNED)
    late = {
        "jobs past their expiry that are not marked as expired": expired,
        "jobs that are due and not made available": due,
        "jobs kept for hours beyond their retention": old,
    }
    for what, number in late.items():
        if number:
            remedy = "start a worker, which does that in passing; if one is there, look at its log"
            yield Finding(Level.WARNING, "upkeep", f"{what}: {number:,}", remedy)
    if not any(late.values()):
        yield Finding(Level.OK, "upkeep", "due, expired and old jobs are dealt with")


_WRONG = (
    "ids of no job",
    "jobs in no state",
    "jobs that are live and final at once",
    "available jobs that no queue holds",
    "running jobs of no worker",
    "ended jobs that would be kept for ever",
)
_UNHELD = "running jobs that their worker does not hold"


def _consistency(link: Link) -> Findings:
    """What holds after each of Mouso's scripts, and what another program may have broken."""
    wrong = dict.fromkeys((*_WRONG, _UNHELD), 0)
    cursor = b"0"
    while True:
        cursor, running, *found = link.call("verify", "", cursor, _STEP)
        by_worker: dict[bytes, list[bytes]] = {}
        for seq, worker in zip(running[::2], running[1::2], strict=True):
            by_worker.setdefault(worker, []).append(seq)
        for worker, seqs in by_worker.items():
            wrong[_UNHELD] += link.call("unheld", "", worker, *seqs, of=worker.decode())
        for what, number in zip(_WRONG, found, strict=True):
            wrong[what] += number
        if cursor == b"0":
            break
    for what, number in wrong.items():
        if number:
            remedy = "find the program that writes to Mouso's keys; restore a backup if jobs are missing"
            yield Finding(Level.ERROR, "consistency", f"{what}: {number:,}", remedy)
    if not any(wrong.values()):
        yield Finding(Level.OK, "consistency", "jobs, states and queues fit together")
