"""The verbs on SQLite: each opens one transaction and lets the module of its room do the work in it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    Update,
    Want,
    WorkerInfo,
)
from mouso.brokers.ears import Woken
from mouso.brokers.sqlite import joining, operating, producing, rows, upkeep, working
from mouso.brokers.sqlite.bell import CALLERS, WORKERS, Bells, Listener, Poller
from mouso.brokers.sqlite.ground import engine_notice
from mouso.brokers.sqlite.store import Store
from mouso.clock import SYSTEM, Clock
from mouso.errors import CapabilityError
from mouso.job import Job, Outcome, RunInfo
from mouso.urls import BrokerURL

_LOOK_AGAIN = 1.0
"""Seconds after which a waiting caller looks by itself: rings are hints."""


class SQLiteBroker:
    """Jobs in one SQLite file, for any number of processes on this host."""

    capabilities = Capabilities(name="sqlite", transactional=True)

    def __init__(self, url: BrokerURL, *, clock: Clock = SYSTEM, create: bool = True) -> None:
        self.url = str(url)
        self._clock = clock
        self._boot = _boot_id()
        self._store = Store(url.path, url.params.get("synchronous", "full"), create=create)
        self._bells = Bells(self._store.path)
        self._claimer = working.Claimer()
        self._pruner = upkeep.Pruner()
        self._known_queues: set[str] = set()
        self._ears: dict[str, Listener | Poller] = {}
        self._ears_lock = threading.Lock()
        self._pid = os.getpid()
        self._interrupted: set[str] = set()

    def __repr__(self) -> str:
        return f"SQLiteBroker({self.url!r})"

    def notices(self) -> list[str]:
        notice = engine_notice()
        return [notice] if notice else []

    def open(self) -> None:
        self._store.open()

    def close(self) -> None:
        with self._ears_lock:
            for ear in self._ears.values():
                ear.close()
            self._ears.clear()
        self._bells.close()
        self._store.close()

    def migrate(self) -> tuple[int, int]:
        return self._store.migrate()

    def sql(self, what: Script) -> str:
        raise CapabilityError(
            f"{self.url} takes no SQL; run mouso migrate without --{'roles' if what is Script.ROLES else 'sql'}"
        )

    # -- producers

    def enqueue(self, jobs: Sequence[Job], *, connection: object | None = None, timeout: float = 5.0) -> list[Enqueued]:
        if not jobs:
            return []
        if connection is not None:
            return self._enqueue_in(connection, jobs, timeout)
        with self._store.write(timeout) as tx:
            enqueued, expired = producing.insert(tx, jobs, self._clock.now(), self._known_queues)
        if not all(job.queue in self._known_queues for job in jobs):
            self._known_queues.update(job.queue for job, s in zip(jobs, enqueued, strict=True) if s.created)
        self._bells.ring(WORKERS)
        if expired:
            self._bells.ring(CALLERS)
        return enqueued

    def _enqueue_in(self, connection: object, jobs: Sequence[Job], timeout: float) -> list[Enqueued]:
        with joining.borrowed(self._store, connection, timeout) as tx:
            alone = not tx.in_transaction
            if alone:
                tx.execute("BEGIN IMMEDIATE")
            try:
                enqueued, expired = producing.insert(tx, jobs, self._clock.now(), set())
            except BaseException:
                if alone and tx.in_transaction:  # SQLite may have rolled back by itself, as on a full disk
                    tx.execute("ROLLBACK")
                raise
            if alone and joining.commits_by_itself(tx):
                tx.execute("COMMIT")
        self._bells.ring(WORKERS)
        if expired:
            self._bells.ring(CALLERS)
        return enqueued

    # -- workers

    def wait(self, timeout: float) -> bool:
        ear = (self._pid == os.getpid() and self._ears.get(WORKERS)) or self._ear(WORKERS)
        return ear.wait(timeout) is not Woken.TIMEOUT

    def interrupt(self) -> None:
        with self._ears_lock:
            for kind in (WORKERS, CALLERS):
                if kind in self._ears:
                    self._ears[kind].interrupt()
                else:
                    self._interrupted.add(kind)

    def exchange(self, worker: str, outcomes: Sequence[Outcome], want: Want) -> Exchange:
        with self._store.write(politely=True) as tx:
            now = self._clock.now()
            number = working.worker_number(tx, worker, self._boot, now, self._clock.steady())
            fenced = working.settle(tx, worker, number, outcomes, now) if outcomes else []
            exchange = self._claimer.claim(tx, number, want, now)
            exchange.fenced = fenced
        if outcomes:
            self._bells.ring(CALLERS)
        return exchange

    def heartbeat(self, worker: WorkerInfo) -> list[Command]:
        with self._store.write() as tx:
            return working.heartbeat(tx, worker, self._boot, self._clock.now(), self._clock.steady())

    def report(self, worker: str, updates: Sequence[Update]) -> list[int | str]:
        with self._store.write() as tx:
            fenced = working.report(tx, worker, updates, self._clock.now())
        self._bells.ring(CALLERS)
        return fenced

    def reconcile(self, worker: str, held: Sequence[tuple[int | str, int]]) -> list[int | str]:
        with self._store.write() as tx:
            fenced = upkeep.reconcile(tx, worker, held, self._clock.now())
        self._ring_all()
        return fenced

    def retire(self, worker: str) -> int:
        released = 0
        with self._store.write() as tx:
            row = tx.execute("SELECT n FROM mouso_workers WHERE id = ?", (worker,)).fetchone()
            if row:
                tallies: rows.Tallies = rows.Tallies()
                released = rows.give_back(tx, row[0], -1, self._clock.now(), tallies)
                rows.store_tallies(tx, tallies)
                tx.execute("DELETE FROM mouso_workers WHERE n = ?", row)
        self._ring_all()
        return released

    def transaction(self, connection: object | None = None) -> joining.SQLiteTransaction:
        return joining.SQLiteTransaction(self._store, connection, self._clock, self._ring_all)

    # -- upkeep

    def promote(self, limit: int) -> int:
        now = self._clock.now()
        with self._store.read() as tx:
            if not upkeep.work_waits(tx, now):
                return 0
        with self._store.write() as tx:
            promoted = upkeep.promote(tx, limit, now)
        self._ring_all()
        return promoted

    def reap(self, limit: int) -> list[str]:
        steady = self._clock.steady()
        with self._store.read() as tx:
            if not upkeep.expired_workers(tx, self._boot, steady):
                return []
        with self._store.write() as tx:
            reaped = upkeep.reap(tx, limit, self._boot, self._clock.now(), steady)
        self._ring_all()
        return reaped

    def prune(self, limit: int, retention: Retention) -> int:
        with self._store.write(politely=True) as tx:
            return self._pruner.prune(tx, limit, retention, self._boot, self._clock.now(), self._clock.steady())

    # -- operators and waiting callers

    def cancel(self, ids: Sequence[str]) -> list[CancelResult]:
        with self._store.write() as tx:
            results = operating.cancel(tx, ids, self._clock.now())
        self._ring_all()
        return results

    def retry(self, ids: Sequence[str], *, payload: bytes | None = None) -> list[RetryResult]:
        with self._store.write() as tx:
            results = operating.retry(tx, ids, payload, self._clock.now())
        self._ring_all()
        return results

    def ask_stack(self, id: str) -> bool:
        with self._store.write() as tx:
            return working.ask_stack(tx, id)

    def delete(self, ids: Sequence[str]) -> list[DeleteResult]:
        with self._store.write() as tx:
            results = operating.delete(tx, ids)
        self._bells.ring(CALLERS)
        return results

    def pause(self, queue: str, until: int | None = None) -> None:
        with self._store.write() as tx:
            operating.pause(tx, queue, until)

    def resume(self, queue: str) -> None:
        with self._store.write() as tx:
            operating.resume(tx, queue)
        self._bells.ring(WORKERS)

    def purge(self, queue: str, limit: int) -> int:
        with self._store.write() as tx:
            purged = operating.purge(tx, queue, limit)
        self._bells.ring(CALLERS)
        return purged

    def get(self, ids: Sequence[str]) -> list[Job | None]:
        found: dict[str, Job] = {}
        with self._store.read() as tx:
            for start in range(0, len(ids), rows.MOST_IDS):
                chunk = ids[start : start + rows.MOST_IDS]
                seqs = tx.execute(
                    f"SELECT seq FROM mouso_jobs WHERE id IN ({rows.marks(chunk)})",
                    chunk,
                ).fetchall()
                jobs = rows.read_jobs(tx, [seq for (seq,) in seqs], errors=True)
                found.update((job.id, job) for job in jobs.values())
        return [found.get(id_) for id_ in ids]

    def runs(self, id: str) -> list[RunInfo]:
        with self._store.read() as tx:
            seqs = [seq for (seq,) in tx.execute("SELECT seq FROM mouso_jobs WHERE id = ? AND id <> ''", (id,))]
            return [run for job in rows.read_jobs(tx, seqs, errors=False).values() for run in rows.read_runs(tx, job)]

    def find(self, where: JobFilter) -> list[Job]:
        jobs: list[Job] = []
        with self._store.read() as tx:
            seqs = operating.find(tx, where)
            for start in range(0, len(seqs), rows.MOST_IDS):
                chunk = seqs[start : start + rows.MOST_IDS]
                found = rows.read_jobs(tx, chunk, errors=False)
                jobs += [found[seq] for seq in chunk if seq in found]
        return jobs

    def queues(self) -> list[QueueInfo]:
        with self._store.read() as tx:
            return operating.queues(tx, self._clock.now())

    def workers(self) -> list[WorkerInfo]:
        steady = self._clock.steady()
        with self._store.read() as tx:
            found = tx.execute(
                "SELECT w.id, w.info, w.beat, w.lease_until,"
                " (SELECT count(*) FROM mouso_live WHERE state = 'running' AND worker = w.n)"
                " FROM mouso_workers w WHERE reaped_at IS NULL AND boot = ? ORDER BY n",
                (self._boot,),
            ).fetchall()
        infos = [
            msgspec.structs.replace(
                rows.read_worker(id, info),
                beat=beat,
                lease_left=max(until - steady, 0),
                running=running,
            )
            for id, info, beat, until, running in found
        ]
        return sorted(infos, key=lambda info: info.started_at)

    def diagnose(self, *, retention: Retention, full: bool = False) -> Diagnosis:
        from mouso.brokers.sqlite import diagnosis, looking  # for the one program that asks

        url = BrokerURL.parse(self.url)
        findings, readable = diagnosis.examine(os.path.abspath(url.path), self._clock, retention, full=full)
        view = SQLiteBroker(url, clock=self._clock) if readable else None
        if view is not None:
            view._store = looking.Reader(os.path.realpath(self._store.path), "")
        return Diagnosis(findings, view)

    def watch(self, seen: Mapping[str, JobUpdate | None], timeout: float) -> list[JobUpdate]:
        deadline = self._clock.monotonic() + timeout
        ids = list(seen)
        ear = self._ear(CALLERS)
        while True:
            with self._store.read() as tx:
                found = operating.snapshot(tx, ids)
            changed = [now for id_ in ids if (now := found.get(id_) or JobUpdate(id_, None)) != seen[id_]]
            left = deadline - self._clock.monotonic()
            if changed or left <= 0:
                return changed
            if ear.wait(min(left, _LOOK_AGAIN)) is Woken.INTERRUPTED:
                return []

    # -- waking

    def _ring_all(self) -> None:
        self._bells.ring(WORKERS)
        self._bells.ring(CALLERS)

    def _ear(self, kind: str) -> Listener | Poller:
        with self._ears_lock:
            if self._pid != os.getpid():
                self._pid, self._ears = os.getpid(), {}  # a forked child's rings would come to its parent
            if kind not in self._ears:
                self._store.open()
                self._ears[kind] = self._bells.listener(kind) or Poller(self._version)
                if kind in self._interrupted:
                    self._interrupted.remove(kind)
                    self._ears[kind].interrupt()
            return self._ears[kind]

    def _version(self) -> int:
        with self._store.read() as tx:
            return int(tx.execute("PRAGMA data_version").fetchone()[0])


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
