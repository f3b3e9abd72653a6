"""The verbs on RabbitMQ without a store: it delivers jobs and does not remember them.

A job is a message. To claim it is to have it unacknowledged, to complete it is to acknowledge it; whatever else
becomes of it is a new message, stored before the old one is acknowledged. So a crash in between makes a job run
again, and never loses one. The server takes back what a lost connection has not acknowledged: its connection is a
worker's lease.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from msgspec.structs import replace
from pika.channel import Channel

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
from mouso.brokers.rabbitmq.desk import Steps
from mouso.brokers.rabbitmq.diagnosis import diagnose
from mouso.brokers.rabbitmq.facts import Fact
from mouso.brokers.rabbitmq.graveyard import Graveyard
from mouso.brokers.rabbitmq.letter import job_of, letter_of, revived
from mouso.brokers.rabbitmq.link import Outage
from mouso.brokers.rabbitmq.names import LEVELS
from mouso.brokers.rabbitmq.sending import Sending, until
from mouso.brokers.rabbitmq.shelf import Piece, take, take_out
from mouso.brokers.rabbitmq.working import Working
from mouso.clock import SYSTEM, Clock
from mouso.errors import CapabilityError
from mouso.job import Job, JobState, Outcome, RunInfo
from mouso.urls import BrokerURL

_PATIENCE = 5.0
"""Seconds that a verb may take which has no deadline of its own."""
_OPERATOR = 30.0
"""And one that looks at all dead letters."""
_PRUNE = 600.0
"""Seconds between two looks for dead letters past their retention: each takes some out and puts them back."""
_KEPT = frozenset({JobState.DEAD, JobState.EXPIRED})


class LoneRabbitBroker:
    """Jobs in RabbitMQ's own queues."""

    capabilities = Capabilities(
        name="rabbitmq without a store", unique=False, inspect=False, results=False, remote=True
    )

    def __init__(self, url: BrokerURL, clock: Clock = SYSTEM) -> None:
        self.url = url.shown
        self._clock = clock
        self._server = url.server
        outage = Outage(url.server, "jobs wait", raised=True)
        self._sending = Sending(url, outage)
        self._working = Working(url, outage, self._sending, clock)
        self._graveyard = Graveyard(self._sending)
        self._pruned = SYSTEM.monotonic()

    def __repr__(self) -> str:
        return f"LoneRabbitBroker({self.url!r})"

    def notices(self) -> list[str]:
        return []

    def open(self) -> None:
        self._sending.topology.base(until(_PATIENCE))

    def close(self) -> None:
        self._working.close()
        self._sending.close()

    def migrate(self) -> tuple[int, int]:
        self.open()
        return 1, 1

    def sql(self, what: Script) -> str:
        raise CapabilityError(
            f"{self.url} takes no SQL; run mouso migrate without --{'roles' if what is Script.ROLES else 'sql'}"
        )

    # -- producers

    def enqueue(self, jobs: Sequence[Job], *, connection: object | None = None, timeout: float = 5.0) -> list[Enqueued]:
        if connection is not None:
            raise self._lacks("joins no transaction")
        if any(job.unique for job in jobs):
            raise self._lacks("holds no unique keys")
        now = self._clock.now()
        if jobs:
            self._sending.publish([letter_of(job, now) for job in jobs], until(timeout))
        return [Enqueued(job.id, created=True) for job in jobs]

    # -- workers: see ``Working``

    def wait(self, timeout: float) -> bool:
        return self._working.wait(timeout)

    def interrupt(self) -> None:
        self._working.interrupt()

    def exchange(self, worker: str, outcomes: Sequence[Outcome], want: Want) -> Exchange:
        return self._working.exchange(worker, outcomes, want)

    def heartbeat(self, worker: WorkerInfo) -> list[Command]:
        return self._working.heartbeat(worker)

    def report(self, worker: str, updates: Sequence[Update]) -> list[int | str]:
        return self._working.report(worker, updates)

    def reconcile(self, worker: str, held: Sequence[tuple[int | str, int]]) -> list[int | str]:
        return self._working.reconcile(worker, held)

    def retire(self, worker: str) -> int:
        return self._working.retire(worker)

    def transaction(self, connection: object | None = None) -> Transaction:
        raise self._lacks("has no transactions")

    # -- upkeep: RabbitMQ does it

    def promote(self, limit: int) -> int:
        return 0

    def reap(self, limit: int) -> list[str]:
        return []

    def prune(self, limit: int, retention: Retention) -> int:
        if SYSTEM.monotonic() - self._pruned < _PRUNE:
            return 0
        self._pruned = SYSTEM.monotonic()
        return self._graveyard.prune(self._clock.now() - retention.dead, retention.max_dead, limit, until(_OPERATOR))

    # -- operators and waiting callers

    def cancel(self, ids: Sequence[str]) -> list[CancelResult]:
        raise self._lacks("cannot find a job to cancel it")

    def retry(self, ids: Sequence[str], *, payload: bytes | None = None) -> list[RetryResult]:
        found = self._graveyard.move(ids, lambda letter: revived(letter, payload), until(_OPERATOR))
        return [RetryResult.RETRIED if id in found else RetryResult.UNKNOWN for id in ids]

    def delete(self, ids: Sequence[str]) -> list[DeleteResult]:
        found = self._graveyard.move(ids, None, until(_OPERATOR))
        return [DeleteResult.DELETED if id in found else DeleteResult.UNKNOWN for id in ids]

    def ask_stack(self, id: str) -> bool:
        raise self._lacks("knows no running jobs")

    def pause(self, queue: str, until: int | None = None) -> None:
        self._announce(Fact("pause", queue, until))

    def resume(self, queue: str) -> None:
        self._announce(Fact("resume", queue))

    def _announce(self, fact: Fact) -> None:
        self._sending.tell(fact, until(_PATIENCE))
        self._working.learn(fact)

    def purge(self, queue: str, limit: int) -> int:
        deadline, left = until(_OPERATOR), limit
        for level in LEVELS:
            name = self._sending.names.work(queue, level)
            if left > 0 and self._sending.topology.exists(name, deadline):
                left -= self._purge(name, left, deadline)
        return limit - left

    def _purge(self, name: str, limit: int, deadline: float) -> int:
        def steps(channel: Channel) -> Steps[int]:
            pieces: list[Piece] = yield lambda done: take(channel, name, limit, done)
            yield lambda done: take_out(channel, done)
            return len(pieces)

        return self._sending.publisher.talk(steps, deadline)

    def get(self, ids: Sequence[str]) -> list[Job | None]:
        dead = {letter.id: letter for letter in self._graveyard.letters(until(_OPERATOR))}
        for id in ids:
            if id not in dead:
                raise self._lacks(f"remembers dead jobs only, and {id} is none")
        return [job_of(dead[id]) for id in ids]

    def runs(self, id: str) -> list[RunInfo]:
        return []

    def find(self, where: JobFilter) -> list[Job]:
        if where.states is None or not where.states <= _KEPT or where.parked:
            raise self._lacks("remembers jobs that are dead or expired only")
        letters = self._graveyard.letters(until(_OPERATOR))
        jobs = [replace(job_of(letter), errors=()) for letter in letters if letter.state in where.states]
        jobs = [job for job in jobs if where.queue in (None, job.queue) and where.task in (None, job.task)]
        jobs.sort(key=lambda job: (job.enqueued_at, job.id), reverse=True)
        if where.after is not None:
            rest = itertools.dropwhile(lambda job: job.id != where.after, jobs)
            jobs = list(itertools.islice(rest, 1, None))
        return jobs[: where.limit]

    def queues(self) -> list[QueueInfo]:
        deadline, now = until(_OPERATOR), self._clock.now()
        facts = self._sending.facts(deadline)
        found = []
        for queue in sorted(facts.queues):
            paused = facts.paused(queue, now)
            sizes = [self._sending.topology.size(self._sending.names.work(queue, level), deadline) for level in LEVELS]
            found.append(
                QueueInfo(
                    name=queue,
                    counts={JobState.AVAILABLE: sum(size[0] for size in sizes if size)},
                    paused=paused,
                    paused_until=facts.pauses[queue] if paused else None,
                )
            )
        return found

    def workers(self) -> list[WorkerInfo]:
        return []

    def diagnose(self, *, retention: Retention, full: bool = False) -> Diagnosis:
        return Diagnosis(diagnose(self._sending, self._graveyard, until(_OPERATOR)), None)

    def watch(self, seen: Mapping[str, JobUpdate | None], timeout: float) -> list[JobUpdate]:
        raise self._lacks("does not tell what became of a job")

    def _lacks(self, what: str) -> CapabilityError:
        return CapabilityError(f"{self._server} without a store {what}; name one, as in Mouso(broker=…, store=…)")
