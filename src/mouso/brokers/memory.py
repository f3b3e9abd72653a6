"""Jobs in this process's memory: for tests, and the executable form of what every broker guarantees.

A store is a few dictionaries under one lock. Every verb holds the lock from its first read to its last write,
which makes it one atomic step, and wakes whoever waits before it lets go. Nothing is indexed for speed: which
jobs can be claimed, which keys are held and which leases hold is worked out from the jobs, the workers and
the two clocks when somebody asks. The wall clock decides what is due, expired or past its retention; leases
count by the steady clock, so a wall clock that jumps neither ends nor prolongs one.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import dropwhile, islice
from typing import Any, ClassVar

from msgspec.structs import replace

from mouso.brokers.base import (
    LEASE_MS,
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
from mouso.clock import SYSTEM, Clock
from mouso.errors import CapabilityError
from mouso.job import (
    FINAL,
    KEPT_RUNS,
    LIVE,
    Job,
    JobState,
    Lease,
    Outcome,
    RunInfo,
    Stack,
    UniqueScope,
    check_transition,
    decode_log,
    end_of_run,
    measures,
)
from mouso.urls import BrokerURL

_WAITING = LIVE - {JobState.RUNNING}
_DELAYED = frozenset({JobState.SCHEDULED, JobState.RETRYABLE})
_GIVEN = Job.__struct_fields__[: Job.__struct_fields__.index("state")]
"""What a producer says of a job; the broker fills in the rest, whatever the producer handed over."""
_LEASED = tuple(name for name in Lease.__struct_fields__ if name not in ("key", "token", "ttl"))


@dataclass(slots=True, eq=False)
class _Record:
    """A stored job.

    Attributes:
        key: Its number in the order of enqueueing; never used again, so a late writer finds no other job.
        fresh: Not claimed since its enqueue or last ``retry``.
        keep: ms to keep its result, None for the retention that ``prune`` is given.
        runs: What is known of its runs, by token.
        asked: The token of the claim whose stack is asked for, 0 for none.
    """

    key: int
    job: Job
    fresh: bool = True
    keep: int | None = None
    runs: dict[int, RunInfo] = field(default_factory=dict)
    asked: int = 0

    def note(self, token: int, **facts: Any) -> None:
        """Adds to what is known of a run."""
        run = self.runs.get(token) or RunInfo(token=token, attempt=self.job.attempts + 1)
        self.runs[token] = replace(run, **facts)
        self.runs.pop(token - KEPT_RUNS, None)


@dataclass(slots=True)
class _Store:
    """What the broker objects of one URL share.

    Attributes:
        changed: The lock; notified whenever something changed.
        rings: How often so far there was something new for workers.
        turn: How many claims from all queues there were; each begins with another queue.
        last_key: The key given last.
        jobs: By key, which is the order of enqueueing.
        holders: For each unique key the job that took it last, pruned or not: a period outlives its job.
        workers: Known workers, each with the instant by the steady clock when its lease ends.
        reaped: Workers that were reaped and have not announced themselves since.
        queues: Every queue that ever had a job or was paused.
        pauses: For each paused queue the instant when the pause ends, None for never.
    """

    changed: threading.Condition = field(default_factory=threading.Condition)
    rings: int = 0
    turn: int = 0
    last_key: int = 0
    jobs: dict[int | str, _Record] = field(default_factory=dict)
    ids: dict[str, _Record] = field(default_factory=dict)
    holders: dict[str | None, _Record] = field(default_factory=dict)
    workers: dict[str, tuple[WorkerInfo, int]] = field(default_factory=dict)
    reaped: set[str] = field(default_factory=set)
    queues: set[str] = field(default_factory=set)
    pauses: dict[str, int | None] = field(default_factory=dict)


class MemoryBroker:
    """A broker whose jobs live and die with this process; each verb does what ``Broker`` says of it."""

    capabilities = Capabilities(name="memory", shared=False)
    _stores: ClassVar[dict[str, _Store]] = {}

    def __init__(self, url: BrokerURL | None = None, clock: Clock = SYSTEM) -> None:
        self.url = str(url) if url else "memory://"
        self._clock = clock
        self._attach(_Store())

    @classmethod
    def shared(cls, parsed: BrokerURL, clock: Clock) -> MemoryBroker:
        """A broker on the one store that this process has under the URL's name."""
        broker = cls(parsed, clock)
        broker._attach(cls._stores.setdefault(parsed.path, _Store()))
        return broker

    def _attach(self, store: _Store) -> None:
        self._store = store
        self._heard = store.rings
        self._blocked = 0
        self._interrupts = 0
        self._interrupt_next = False

    def notices(self) -> list[str]:
        return []

    def open(self) -> None: ...

    def close(self) -> None: ...

    def migrate(self) -> tuple[int, int]:
        return 1, 1

    def sql(self, what: Script) -> str:
        raise CapabilityError(
            f"{self.url} takes no SQL; run mouso migrate without --{'roles' if what is Script.ROLES else 'sql'}"
        )

    # -- producers

    def enqueue(self, jobs: Sequence[Job], *, connection: object | None = None, timeout: float = 5.0) -> list[Enqueued]:
        if connection is not None:
            raise CapabilityError("the memory broker joins no transaction; enqueue without a connection")
        with self._step():
            now = self._clock.now()
            return [self._add(job) for job in [_arrived(job, now) for job in jobs]]

    def _add(self, job: Job) -> Enqueued:
        store = self._store
        present = store.ids.get(job.id) or self._holder(job.unique)
        if present is not None:
            return Enqueued(present.job.id, created=False)
        store.last_key += 1
        record = _Record(store.last_key, job)
        store.jobs[record.key] = store.ids[job.id] = store.holders[job.unique] = record
        store.queues.add(job.queue)
        store.rings += 1
        return Enqueued(job.id, created=True)

    def _holder(self, unique: str | None) -> _Record | None:
        """The job that holds a unique key now; one that waits past its expiry expires, unless it holds for a period."""
        record = self._store.holders.get(unique)
        if unique is None or record is None:
            return None
        lasts = record.job.unique_scope is UniqueScope.PERIOD
        if not lasts and record.job.state in _WAITING and _expired(record.job, self._clock.now()):
            self._move(record, JobState.EXPIRED, reason="expired")
        job = record.job
        held = {
            UniqueScope.QUEUED: job.state in LIVE and record.fresh,
            UniqueScope.LIVE: job.state in LIVE,
            UniqueScope.PERIOD: self._clock.now() < job.enqueued_at + job.unique_period,
        }
        return record if held[job.unique_scope] else None

    # -- workers

    def wait(self, timeout: float) -> bool:
        store = self._store
        with store.changed:
            self._block(lambda: store.rings != self._heard, timeout)
            rang = store.rings != self._heard
            self._heard = store.rings
            return rang

    def interrupt(self) -> None:
        with self._step():
            self._interrupts += 1
            self._interrupt_next = self._blocked == 0

    def _block(self, happened: Callable[[], bool], timeout: float) -> None:
        """Lets go of the lock until ``happened``, an interrupt or the end of the timeout."""
        if self._interrupt_next:
            self._interrupt_next = False
            return
        interrupts = self._interrupts
        self._blocked += 1
        try:
            self._store.changed.wait_for(
                lambda: happened() or self._interrupts != interrupts, min(timeout, threading.TIMEOUT_MAX)
            )
        finally:
            self._blocked -= 1

    def exchange(self, worker: str, outcomes: Sequence[Outcome], want: Want) -> Exchange:
        for outcome in outcomes:
            check_transition(JobState.RUNNING, outcome.state)
        with self._step():
            fenced = [outcome.key for outcome in outcomes if not self._settle(outcome, worker)]
            parked = self._park(want)
            leases = [self._claim(record, worker) for record in self._pick(want)]
            if leases and worker not in self._store.workers:
                self._announce(WorkerInfo(id=worker, name=worker, host="", pid=0))
            dues = [(record.job.due or 0) - self._clock.now() for record in self._jobs(_DELAYED)]
            next_due = max(0, min(dues)) if dues else None
            return Exchange(leases=leases, fenced=fenced, parked=parked, next_due=next_due)

    def _running(self, key: int | str, token: int, worker: str) -> _Record | None:
        """The fence: the job, if this claim of this worker is its last and still runs."""
        record = self._store.jobs.get(key)
        if record is None or record.job.state is not JobState.RUNNING:
            return None
        return record if (record.job.claims, record.job.worker) == (token, worker) else None

    def _settle(self, outcome: Outcome, worker: str) -> bool:
        record = self._running(outcome.key, outcome.token, worker)
        if record is None:
            return False
        job, state, now = record.job, _ended_as(record.job, outcome.state), self._clock.now()
        changes: dict[str, Any] = {}
        if outcome.charge:
            changes[outcome.charge] = getattr(job, outcome.charge) + 1
        took, log = measures(outcome), decode_log(outcome.log)
        known = record.runs.get(outcome.token)
        if took or log or (known and (known.lines or known.stack)):
            record.note(outcome.token, end=end_of_run(outcome.state, outcome.charge), worker=worker, **took, **log)
        if outcome.error is not None:
            error = replace(outcome.error, at=now, worker=worker, token=outcome.token, **took)
            changes["errors"] = (*job.errors, error)
        if state in _DELAYED:
            changes["due"] = now + outcome.delay
        if state.final:
            changes |= {"worker": worker, "run_seconds": outcome.run_seconds, "result": outcome.result, **took}
            changes["reason"] = outcome.reason if state is outcome.state else "cancelled"
            record.keep = outcome.keep
        self._move(record, state, **changes)
        return True

    def _claimable(self) -> dict[str, list[_Record]]:
        """By queue, what a worker that knows every task could claim now, in the order to start it."""
        now = self._clock.now()
        queues: dict[str, list[_Record]] = {}
        for record in sorted(self._jobs({JobState.AVAILABLE}), key=lambda record: -record.job.priority):
            job = record.job
            if not (job.parked or _expired(job, now) or self._paused(job.queue)):
                queues.setdefault(job.queue, []).append(record)
        return queues

    def _park(self, want: Want) -> list[str]:
        """Sets aside jobs of the served queues whose task no worker knows."""
        if want.tasks is None or want.limit == 0:
            return []
        known = want.tasks.union(*(w.tasks for w, _ in self._store.workers.values()))
        claimable = self._claimable()
        served = claimable if want.shares is None else [queue for queue, _ in want.shares]
        unknown = [r for queue in served for r in claimable.get(queue, ()) if r.job.task not in known]
        for record in unknown:
            record.job = replace(record.job, parked=True)
        return sorted({record.job.task for record in unknown})

    def _pick(self, want: Want) -> list[_Record]:
        """The jobs to claim, in the order to start them."""
        able = {
            queue: [record for record in records if want.tasks is None or record.job.task in want.tasks]
            for queue, records in self._claimable().items()
        }
        left = {queue: iter(records) for queue, records in able.items()}
        picked: list[_Record] = []
        for queue, share in self._turns(want, able):
            picked += islice(left.get(queue, ()), min(share, want.limit - len(picked)))
        return picked

    def _turns(self, want: Want, able: Mapping[str, Collection[_Record]]) -> Iterator[tuple[str, int]]:
        """Which queue is asked for how many jobs, in turn: each for its share, then for what is left over."""
        if want.shares is not None:
            yield from want.shares
            yield from ((queue, want.limit) for queue, _ in want.shares)
        elif able:
            self._store.turn += 1
            names, first = sorted(able), self._store.turn % len(able)
            for _ in range(min(want.limit, max(map(len, able.values())))):
                yield from ((queue, 1) for queue in names[first:] + names[:first])

    def _claim(self, record: _Record, worker: str) -> Lease:
        self._move(record, JobState.RUNNING, claims=record.job.claims + 1, worker=worker)
        record.fresh = False
        job = record.job
        ttl = None if job.expires_at is None else job.expires_at - self._clock.now()
        shown = {name: getattr(job, name) for name in _LEASED}
        return Lease(key=record.key, token=job.claims, ttl=ttl, **shown)

    def heartbeat(self, worker: WorkerInfo) -> list[Command]:
        store = self._store
        with self._step():
            commands = [Command("rejoin")] if worker.id in store.reaped else []
            store.reaped.discard(worker.id)
            self._announce(worker)
            for record in self._jobs({JobState.AVAILABLE}):
                if record.job.parked and record.job.task in worker.tasks:
                    record.job = replace(record.job, parked=False)
                    store.rings += 1
            mine = self._running_under(worker.id)
            commands += [Command("cancel", r.key, r.job.claims) for r in mine if r.job.cancel_requested]
            return commands + [Command("stack", r.key, r.job.claims) for r in mine if r.asked == r.job.claims]

    def _announce(self, worker: WorkerInfo) -> None:
        announced = replace(worker, beat=self._clock.now())
        self._store.workers[worker.id] = announced, self._clock.steady() + LEASE_MS

    def report(self, worker: str, updates: Sequence[Update]) -> list[int | str]:
        fenced = []
        with self._step():
            for update in updates:
                record = self._running(update.key, update.token, worker)
                if record is None:
                    fenced.append(update.key)
                    continue
                if update.progress is not None:
                    record.job = replace(record.job, progress=update.progress)
                if update.log is not None:
                    record.note(update.token, worker=worker, **decode_log(update.log))
                if update.stack is not None:
                    record.note(update.token, worker=worker, stack=Stack(self._clock.now(), update.stack))
                    record.asked = 0
        return fenced

    def reconcile(self, worker: str, held: Sequence[tuple[int | str, int]]) -> list[int | str]:
        with self._step():
            running = {(record.key, record.job.claims): record for record in self._running_under(worker)}
            self._give_back([record for claim, record in running.items() if claim not in held])
            return [key for key, token in held if (key, token) not in running]

    def retire(self, worker: str) -> int:
        with self._step():
            self._store.workers.pop(worker, None)
            self._store.reaped.discard(worker)
            return self._give_back(self._running_under(worker))

    def _give_back(self, running: Sequence[_Record]) -> int:
        for record in running:
            state = _ended_as(record.job, JobState.AVAILABLE)
            reason = "cancelled" if state.final else ""
            self._move(record, state, releases=record.job.releases + 1, reason=reason)
        return len(running)

    def _running_under(self, worker: str) -> list[_Record]:
        return [record for record in self._jobs({JobState.RUNNING}) if record.job.worker == worker]

    # -- upkeep

    def transaction(self, connection: object | None = None) -> Transaction:
        raise CapabilityError("memory has no transactions; a job that ends in one needs SQLite or PostgreSQL")

    def promote(self, limit: int) -> int:
        with self._step():
            now = self._clock.now()
            expired = [record for record in self._jobs(_WAITING) if _expired(record.job, now)]
            due = [r for r in self._jobs(_DELAYED) if (r.job.due or 0) <= now and not _expired(r.job, now)]
            due.sort(key=lambda record: record.job.due or 0)
            changing = (expired + due)[:limit]
            for record in changing:
                if _expired(record.job, now):
                    self._move(record, JobState.EXPIRED, reason="expired")
                else:
                    self._move(record, JobState.AVAILABLE)
            return len(changing)

    def reap(self, limit: int) -> list[str]:
        store = self._store
        reaped = []
        with self._step():
            now = self._clock.steady()
            for _, worker in sorted((end, id) for id, (_, end) in store.workers.items() if end <= now):
                limit -= self._give_back(self._running_under(worker)[:limit])
                if self._running_under(worker):
                    break
                del store.workers[worker]
                store.reaped.add(worker)
                reaped.append(worker)
        return reaped

    def prune(self, limit: int, retention: Retention) -> int:
        with self._step():
            periods = {k: r.job for k, r in self._store.holders.items() if r.job.unique_scope is UniqueScope.PERIOD}
            for key, job in periods.items():
                if job.enqueued_at + job.unique_period <= self._clock.now():
                    del self._store.holders[key]
            past = self._past({JobState.DEAD}, retention.dead, retention.max_dead)
            past += self._past(FINAL - {JobState.DEAD}, retention.finished, retention.max_finished)
            past = sorted(past, key=lambda record: record.key)[:limit]
            for record in past:
                self._remove(record)
            return len(past)

    def _past(self, states: Collection[JobState], age: int, most: int) -> list[_Record]:
        """Jobs of these states that finished ``age`` ms ago, and of the others all but ``most``."""
        now, final = self._clock.now(), self._jobs(states)
        ends = {r.key: (r.job.finished_at or 0) + (age if r.keep is None else r.keep) for r in final}
        over = [record for record in final if ends[record.key] <= now]
        left = [record for record in final if ends[record.key] > now]
        return over + left[: max(0, len(left) - most)]

    # -- operators and waiting callers

    def cancel(self, ids: Sequence[str]) -> list[CancelResult]:
        with self._step():
            return [self._cancel(self._store.ids.get(id)) for id in ids]

    def _cancel(self, record: _Record | None) -> CancelResult:
        if record is None:
            return CancelResult.UNKNOWN
        if record.job.state.final:
            return CancelResult.DONE
        self._store.rings += 1
        if record.job.state is JobState.RUNNING:
            record.job = replace(record.job, cancel_requested=True)
            return CancelResult.REQUESTED
        self._move(record, JobState.CANCELLED, reason="cancelled")
        return CancelResult.CANCELLED

    def retry(self, ids: Sequence[str], *, payload: bytes | None = None) -> list[RetryResult]:
        with self._step():
            return [self._retry(self._store.ids.get(id), payload) for id in ids]

    def _retry(self, record: _Record | None, payload: bytes | None) -> RetryResult:
        if record is None:
            return RetryResult.UNKNOWN
        job = record.job
        if job.state is JobState.COMPLETED:
            return RetryResult.DONE
        if job.state in LIVE - _DELAYED:
            return RetryResult.LIVE
        changes: dict[str, Any] = {} if payload is None else {"payload": payload}
        if job.state.final:
            if self._holder(job.unique) not in (None, record):
                return RetryResult.CONFLICT
            self._store.holders[job.unique] = record
            record.fresh, record.keep = True, None
            changes |= {"attempts": 0, "crashes": 0, "expires_at": None}
        self._move(record, JobState.AVAILABLE, **changes)
        return RetryResult.RETRIED

    def ask_stack(self, id: str) -> bool:
        with self._step():
            record = self._store.ids.get(id)
            if record is None or record.job.state is not JobState.RUNNING:
                return False
            token = record.asked = record.job.claims
            if token in record.runs:
                record.note(token, stack=None)
            return True

    def delete(self, ids: Sequence[str]) -> list[DeleteResult]:
        with self._step():
            return [self._delete(self._store.ids.get(id)) for id in ids]

    def _delete(self, record: _Record | None) -> DeleteResult:
        if record is None:
            return DeleteResult.UNKNOWN
        if record.job.state is JobState.RUNNING:
            return DeleteResult.RUNNING
        self._remove(record, free=True)
        return DeleteResult.DELETED

    def pause(self, queue: str, until: int | None = None) -> None:
        with self._step():
            self._store.queues.add(queue)
            self._store.pauses[queue] = until

    def resume(self, queue: str) -> None:
        with self._step():
            self._store.pauses.pop(queue, None)
            self._store.rings += 1

    def _paused(self, queue: str) -> bool:
        until = self._store.pauses.get(queue, 0)
        return until is None or self._clock.now() < until

    def purge(self, queue: str, limit: int) -> int:
        with self._step():
            doomed = [record for record in self._jobs(_WAITING) if record.job.queue == queue][:limit]
            for record in doomed:
                self._remove(record, free=True)
            return len(doomed)

    def get(self, ids: Sequence[str]) -> list[Job | None]:
        with self._store.changed:
            return [self._store.ids[id].job if id in self._store.ids else None for id in ids]

    def runs(self, id: str) -> list[RunInfo]:
        with self._store.changed:
            record = self._store.ids.get(id)
            return [] if record is None else [_known(record.job, record.runs[token]) for token in _kept(record)]

    def find(self, where: JobFilter) -> list[Job]:
        with self._store.changed:
            jobs = iter([record.job for record in reversed(self._store.jobs.values())])
        if where.after is not None:
            jobs = islice(dropwhile(lambda job: job.id != where.after, jobs), 1, None)
        fitting = (
            replace(job, errors=())
            for job in jobs
            if (where.states is None or job.state in where.states)
            and where.queue in (None, job.queue)
            and where.task in (None, job.task)
            and where.parked in (None, job.parked)
        )
        return list(islice(fitting, where.limit))

    def queues(self) -> list[QueueInfo]:
        with self._store.changed:
            return [self._queue(name) for name in sorted(self._store.queues)]

    def _queue(self, name: str) -> QueueInfo:
        jobs = [record.job for record in self._store.jobs.values() if record.job.queue == name]
        arrivals = [job.enqueued_at for job in jobs if job.state is JobState.AVAILABLE]
        paused = self._paused(name)
        return QueueInfo(
            name=name,
            counts=dict(Counter(job.state for job in jobs)),
            paused=paused,
            paused_until=self._store.pauses[name] if paused else None,
            oldest=max(0, self._clock.now() - arrivals[0]) if arrivals else None,
        )

    def workers(self) -> list[WorkerInfo]:
        with self._store.changed:
            now = self._clock.steady()
            known = [replace(w, lease_left=max(0, end - now)) for w, end in self._store.workers.values()]
        return sorted(known, key=lambda worker: (worker.started_at, worker.id))

    def diagnose(self, *, retention: Retention, full: bool = False) -> Diagnosis:
        return Diagnosis([], self)

    def watch(self, seen: Mapping[str, JobUpdate | None], timeout: float) -> list[JobUpdate]:
        with self._store.changed:
            self._block(lambda: bool(self._news(seen)), timeout)
            return self._news(seen)

    def _news(self, seen: Mapping[str, JobUpdate | None]) -> list[JobUpdate]:
        updates = [_update(id, self._store.ids.get(id)) for id in seen]
        return [update for update in updates if update != seen[update.id]]

    # -- what every verb is made of

    @contextmanager
    def _step(self) -> Iterator[None]:
        """One atomic step that changes something."""
        with self._store.changed:
            yield
            self._store.changed.notify_all()

    def _jobs(self, states: Collection[JobState]) -> list[_Record]:
        """Jobs of these states in the order of enqueueing."""
        return [record for record in self._store.jobs.values() if record.job.state in states]

    def _move(self, record: _Record, state: JobState, **changes: Any) -> None:
        """Takes a job to its next state, the only way there; what belonged to the last state is gone."""
        check_transition(record.job.state, state)
        fields: dict[str, Any] = {"due": None, "parked": False, "cancel_requested": False}
        fields |= {"worker": None, "run_seconds": None, "result": None, "reason": ""}
        fields |= {"started_at": None, "cpu_seconds": None, "peak_memory": None, "pid": None}
        fields |= {"state": state, "finished_at": self._clock.now() if state.final else None}
        record.job = replace(record.job, **(fields | changes))
        if state is JobState.AVAILABLE:
            self._store.rings += 1

    def _remove(self, record: _Record, *, free: bool = False) -> None:
        """Removes a job, and frees its unique key if asked to."""
        del self._store.jobs[record.key]
        del self._store.ids[record.job.id]
        if free and self._store.holders.get(record.job.unique) is record:
            del self._store.holders[record.job.unique]


def _arrived(job: Job, now: int) -> Job:
    """The job as it is stored at first."""
    given = {name: getattr(job, name) for name in _GIVEN if name not in ("delay", "ttl")}
    due = job.due if job.delay is None else now + job.delay
    scheduled = due is not None and due > now
    given["due"] = due if scheduled else None
    given["expires_at"] = job.expires_at if job.ttl is None else now + job.ttl
    return Job(**given, state=JobState.SCHEDULED if scheduled else JobState.AVAILABLE, enqueued_at=now)


def _ended_as(job: Job, state: JobState) -> JobState:
    """What a claim that ends as ``state`` makes of its job: only completion outdoes a wish to cancel."""
    return JobState.CANCELLED if job.cancel_requested and state is not JobState.COMPLETED else state


def _expired(job: Job, now: int) -> bool:
    return job.expires_at is not None and job.expires_at <= now


def _kept(record: _Record) -> list[int]:
    """The tokens of the runs that are kept, and of which anything is known."""
    return [
        token
        for token, run in sorted(record.runs.items())
        if token > record.job.claims - KEPT_RUNS and (run.end or run.lines or run.stack)
    ]


def _known(job: Job, run: RunInfo) -> RunInfo:
    """The run, or that nobody told its end."""
    runs = job.state is JobState.RUNNING and job.claims == run.token
    return run if run.end or runs else replace(run, end="lost")


def _update(id: str, record: _Record | None) -> JobUpdate:
    if record is None:
        return JobUpdate(id, None)
    return JobUpdate(id, record.job.state, record.job.attempts, record.job.progress)
