"""The verbs on Redis: each calls one script."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mouso.brokers.base import (
    CancelResult,
    Capabilities,
    Command,
    DeleteResult,
    Diagnosis,
    Enqueued,
    Exchange,
    JobFilter,
    JobUpdate,
    QueueInfo,
    Retention,
    RetryResult,
    Script,
    Transaction,
    Update,
    Want,
    WorkerInfo,
)
from mouso.brokers.ears import Woken
from mouso.brokers.redis import rows
from mouso.brokers.redis.bell import Ear
from mouso.brokers.redis.keys import KEYS
from mouso.brokers.redis.link import Link
from mouso.clock import SYSTEM, Clock
from mouso.errors import CapabilityError, ConfigError
from mouso.job import Job, JobState, Outcome, RunInfo, check_transition
from mouso.urls import BrokerURL

_LOOK_AGAIN = 1.0
_LOOKS = 10
"""Exchanges that may follow each other while all that a queue shows is jobs that only other workers know."""
_STEP = 20_000
_PAGE = 500
_worker = msgspec.json.Decoder(WorkerInfo).decode


class RedisBroker:
    """Jobs in a Redis or Valkey server."""

    capabilities = Capabilities(name="redis", remote=True)

    def __init__(self, url: BrokerURL, *, clock: Clock = SYSTEM) -> None:
        self._parsed = url
        self.url = url.shown
        self._clock = clock
        self._boot = _boot_id()
        self._prefix = prefix = f"mouso:{{{url.params.get('namespace', 'default')}}}:"
        self._link = Link(url, prefix)
        self._pid = os.getpid()
        self._ears: dict[str, Ear] = {}
        self._ears_lock = threading.Lock()
        self._interrupted: set[str] = set()

    def __repr__(self) -> str:
        return f"RedisBroker({self.url!r})"

    def notices(self) -> list[str]:
        return self._link.facts.notices() if self._link.facts is not None else []

    def open(self) -> None:
        foreign = self.foreign()
        if foreign:
            raise ConfigError(f"{self.url}: {foreign}; delete or rename that key, or use another ?namespace=")

    def foreign(self) -> str:
        """Which of Mouso's keys holds something else, and what; empty if none does."""
        found = self._link.call("types", self._now())
        for name, kind in zip(self._link.scripts["types"].keys, found[::2], strict=True):
            if kind.decode() not in ("none", KEYS[name].kind):
                return f"another program has put a {kind.decode()} under the key {self._prefix}{name}"
        return ""

    def close(self) -> None:
        with self._ears_lock:
            for ear in self._ears.values():
                ear.close()
            self._ears.clear()
        self._link.close()

    def migrate(self) -> tuple[int, int]:
        return 1, 1

    def _now(self) -> bytes | int:
        """What scripts are told to take for now: nothing, so that they ask the server, but in tests."""
        return b"" if self._clock is SYSTEM else self._clock.now()

    def sql(self, what: Script) -> str:
        raise CapabilityError(
            f"{self.url} takes no SQL; run mouso migrate without --{'roles' if what is Script.ROLES else 'sql'}"
        )

    # -- producers

    def enqueue(self, jobs: Sequence[Job], *, connection: object | None = None, timeout: float = 5.0) -> list[Enqueued]:
        if connection is not None:
            raise CapabilityError(f"{self.url} joins no transaction; enqueue without a connection")
        if not jobs:
            return []
        deadline = SYSTEM.monotonic() + timeout
        given = [rows.job_argument(job) for job in jobs]
        reply = self._link.call("enqueue", self._now(), *given, timeout=timeout)
        if not reply:
            reply = self._link.call("enqueue_over", self._now(), *given, timeout=deadline - SYSTEM.monotonic())
        return [Enqueued(holder.decode() or job.id, not holder) for job, holder in zip(jobs, reply, strict=True)]

    # -- workers

    def wait(self, timeout: float) -> bool:
        return self._ear("w").wait(timeout) is not Woken.TIMEOUT

    def interrupt(self) -> None:
        with self._ears_lock:
            for kind in ("w", "c"):
                if kind in self._ears:
                    self._ears[kind].interrupt()
                else:
                    self._interrupted.add(kind)

    def exchange(self, worker: str, outcomes: Sequence[Outcome], want: Want) -> Exchange:
        for outcome in outcomes:
            check_transition(JobState.RUNNING, outcome.state)
        shares: list[bytes | str | float] = []
        if want.shares is not None:
            shares = ["\x00", 0, *(part for share in want.shares for part in share)]
        settled, tasks = rows.outcomes_argument(outcomes, worker), "" if want.tasks is None else _listed(want.tasks)
        done = Exchange(leases=[])
        for _ in range(_LOOKS):
            fenced, parked, due, leases, unseen = self._link.call(
                "exchange", self._now(), self._boot, self._clock.steady(), worker, settled,
                want.limit - len(done.leases), tasks, *shares, of=worker, again=False,
            )  # fmt: skip
            settled = b""
            done.leases += rows.leases(leases)
            done.fenced += [outcomes[n - 1].key for n in fenced]
            done.parked = sorted({*done.parked, *(task.decode() for task in parked)})
            done.next_due = None if due < 0 else due
            if not unseen or len(done.leases) == want.limit:
                break
        return done

    def heartbeat(self, worker: WorkerInfo) -> list[Command]:
        reply = self._link.call(
            "heartbeat", self._now(), self._boot, self._clock.steady(), worker.id, msgspec.json.encode(worker),
            _listed(worker.tasks), of=worker.id,
        )  # fmt: skip
        return [Command(reply[i].decode(), int(reply[i + 1]), reply[i + 2]) for i in range(0, len(reply), 3)]

    def report(self, worker: str, updates: Sequence[Update]) -> list[int | str]:
        parts: list[bytes | str | float] = []
        for update in updates:
            progress = b"" if update.progress is None else msgspec.json.encode(update.progress)
            parts += (rows.seq(update.key), update.token, progress, update.log or b"", update.stack or "")
        fenced = self._link.call("report", self._now(), worker, *parts)
        return [updates[n - 1].key for n in fenced]

    def reconcile(self, worker: str, held: Sequence[tuple[int | str, int]]) -> list[int | str]:
        claims = [part for key, token in held for part in (rows.seq(key), token)]
        fenced = self._link.call("reconcile", self._now(), worker, *claims, of=worker)
        return [held[n - 1][0] for n in fenced]

    def retire(self, worker: str) -> int:
        back, _ = self._link.call("retire", self._now(), worker, -1, "leave", of=worker)
        return int(back)

    # -- upkeep

    def transaction(self, connection: object | None = None) -> Transaction:
        raise CapabilityError("redis has no transactions; a job that ends in one needs SQLite or PostgreSQL")

    def promote(self, limit: int) -> int:
        return int(self._link.call("promote", self._now(), limit))

    def reap(self, limit: int) -> list[str]:
        instant, *expired = self._link.call("expired", self._now(), self._boot, self._clock.steady())
        reaped = []
        for worker in (id.decode() for id in expired):
            back, gone = self._link.call("retire", self._now(), worker, limit, instant, of=worker)
            limit -= back
            if gone:
                reaped.append(worker)
            if limit <= 0:
                break
        return reaped

    def prune(self, limit: int, retention: Retention) -> int:
        bounds = (retention.finished, retention.max_finished, retention.dead, retention.max_dead)
        return int(self._link.call("prune", self._now(), limit, *bounds))

    # -- operators and waiting callers

    def cancel(self, ids: Sequence[str]) -> list[CancelResult]:
        return [CancelResult(word.decode()) for word in self._link.call("cancel", self._now(), *ids)]

    def retry(self, ids: Sequence[str], *, payload: bytes | None = None) -> list[RetryResult]:
        parts: list[bytes | str] = list(ids)
        if payload is not None:
            jobs = self.get(ids)
            parts = []
            for id, job in zip(ids, jobs, strict=True):
                parts += (id, b"" if job is None else rows.body(job, payload))
        reply = self._link.call("retry", self._now(), int(payload is not None), *parts)
        return [RetryResult(word.decode()) for word in reply]

    def ask_stack(self, id: str) -> bool:
        return bool(self._link.call("ask_stack", self._now(), id))

    def delete(self, ids: Sequence[str]) -> list[DeleteResult]:
        return [DeleteResult(word.decode()) for word in self._link.call("delete", self._now(), *ids)]

    def pause(self, queue: str, until: int | None = None) -> None:
        self._link.call("pause", self._now(), queue, "" if until is None else until)

    def resume(self, queue: str) -> None:
        self._link.call("pause", self._now(), queue, "resume")

    def purge(self, queue: str, limit: int) -> int:
        waiting = frozenset({JobState.SCHEDULED, JobState.RETRYABLE, JobState.PENDING, JobState.AVAILABLE})
        found = self._search(JobFilter(states=waiting, queue=queue, limit=limit))
        return int(self._link.call("purge", self._now(), queue, limit, *found))

    def get(self, ids: Sequence[str]) -> list[Job | None]:
        return self._read(ids, "full")

    def _read(self, ids: Sequence[str], how: str) -> list[Job | None]:
        found: list[Job | None] = []
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            reply = self._link.call("get", self._now(), how, *page)
            found += [
                rows.job(one, "" if id[:1] == "#" else id) if one else None for id, one in zip(page, reply, strict=True)
            ]
        return found

    def runs(self, id: str) -> list[RunInfo]:
        [job] = self._read([id], "")
        return [] if job is None else rows.runs(self._link.call("runs", self._now(), id), job)

    def find(self, where: JobFilter) -> list[Job]:
        found = self._search(where)
        return [job for job in self._read([f"#{seq.decode()}" for seq in found], "") if job is not None]

    def _search(self, where: JobFilter) -> list[bytes]:
        """The keys of jobs that fit, the last enqueued first."""
        states = frozenset(JobState) if where.states is None else where.states
        numbers = {rows.NUMBERS[state] for state in states}
        if JobState.AVAILABLE in states:
            numbers.add(rows.PARKED)
        if where.parked is not None:
            numbers = numbers & {rows.PARKED} if where.parked else numbers - {rows.PARKED}
        wanted = f",{','.join(map(str, sorted(numbers)))},"
        running = self._claims() if JobState.RUNNING in states else []
        found: list[bytes] = []
        before = b""
        while len(found) < where.limit:
            before, *more = self._link.call(
                "find", self._now(), where.after or "", before, wanted, where.queue or "", where.task or "",
                where.limit - len(found), _STEP, *running,
            )  # fmt: skip
            found += more
            if not before:
                break
        return found

    def _claims(self) -> list[bytes]:
        """The keys of all running jobs."""
        _, *found = self._link.call("workers", self._now(), self._boot, self._clock.steady())
        return [seq for id in found[::5] for seq in self._link.call("claims", self._now(), of=id.decode())]

    def queues(self) -> list[QueueInfo]:
        names, counts, pauses, ages = self._link.call("queues", self._now())
        now = self._clock.now()
        by_queue: dict[str, dict[JobState, int]] = {name.decode(): {} for name in names}
        for field, n in zip(counts[::2], counts[1::2], strict=True):
            queue, _, state = field.decode().partition("\0")
            by_queue.setdefault(queue, {})[rows.STATES[int(state) - 1]] = int(n)
        until = {queue.decode(): stop for queue, stop in zip(pauses[::2], pauses[1::2], strict=True)}
        oldest = {queue.decode(): int(age) for queue, age in zip(ages[::2], ages[1::2], strict=True)}
        infos = []
        for name in sorted(by_queue):
            stop = until.get(name)
            paused = stop is not None and (not stop or int(stop) > now)
            infos.append(
                QueueInfo(
                    name=name,
                    counts=by_queue[name],
                    paused=paused,
                    paused_until=int(stop) if paused and stop else None,
                    oldest=oldest.get(name),
                )
            )
        return infos

    def workers(self) -> list[WorkerInfo]:
        instant, *found = self._link.call("workers", self._now(), self._boot, self._clock.steady())
        infos = []
        for at in range(0, len(found), 5):
            id, description, beat, until, running = found[at : at + 5]
            info = _worker(description) if description else WorkerInfo(id=id.decode(), name=id.decode(), host="", pid=0)
            left = max(int(float(until)) - int(instant), 0)
            infos.append(msgspec.structs.replace(info, beat=int(beat), lease_left=left, running=int(running)))
        return sorted(infos, key=lambda info: (info.started_at, info.id))

    def diagnose(self, *, retention: Retention, full: bool = False) -> Diagnosis:
        from mouso.brokers.redis import diagnosis  # for the one program that asks

        findings, readable = diagnosis.examine(self._link, self.url, self._prefix, self._clock, retention, full=full)
        return Diagnosis(findings, RedisBroker(self._parsed, clock=self._clock) if readable else None)

    def watch(self, seen: Mapping[str, JobUpdate | None], timeout: float) -> list[JobUpdate]:
        deadline = self._clock.monotonic() + timeout
        ear = self._ear("c")
        while True:
            news = [update for update in self._look(list(seen)) if update != seen[update.id]]
            left = deadline - self._clock.monotonic()
            if news or left <= 0:
                return news
            if ear.wait(min(left, _LOOK_AGAIN)) is Woken.INTERRUPTED:
                return []

    def _look(self, ids: Sequence[str]) -> list[JobUpdate]:
        updates: list[JobUpdate] = []
        for start in range(0, len(ids), _PAGE):
            chunk = ids[start : start + _PAGE]
            for id, found in zip(chunk, self._link.call("look", self._now(), *chunk), strict=True):
                updates.append(_update(id, found))
        return updates

    def _ear(self, kind: str) -> Ear:
        with self._ears_lock:
            if self._pid != os.getpid():
                self._pid, self._ears = os.getpid(), {}  # a forked child's rings would come to its parent
            if kind not in self._ears:
                self._ears[kind] = Ear(self._link, kind)
                if kind in self._interrupted:
                    self._interrupted.remove(kind)
                    self._ears[kind].interrupt()
            return self._ears[kind]


def _update(id: str, found: Any) -> JobUpdate:
    if not found:
        return JobUpdate(id, None)
    state, attempts, progress = found
    known = JobState.AVAILABLE if state == rows.PARKED else rows.STATES[state - 1]
    return JobUpdate(id, known, attempts, rows.read_progress(progress))


def _listed(names: frozenset[str] | tuple[str, ...]) -> str:
    """Names, each between two marks, as scripts search them."""
    return "\x01" + "\x01\x01".join(sorted(names)) + "\x01" if names else "\x01"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
