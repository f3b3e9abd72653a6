"""The verbs on RabbitMQ with a store: the store decides and remembers, RabbitMQ tells workers when to look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from mouso.brokers.base import (
    Broker,
    CancelResult,
    Command,
    DeleteResult,
    Diagnosis,
    Enqueued,
    Exchange,
    Finding,
    JobFilter,
    JobUpdate,
    Level,
    QueueInfo,
    Retention,
    RetryResult,
    Script,
    Transaction,
    Update,
    Want,
    WorkerInfo,
)
from mouso.brokers.rabbitmq.bell import Ear, Hammer
from mouso.brokers.rabbitmq.link import Outage
from mouso.config import one_line
from mouso.job import Job, JobState, Outcome, RunInfo
from mouso.urls import BrokerURL

_FIRST = 2.0
"""Seconds for which ``open`` waits until the server has answered; without it jobs run all the same."""


class RabbitBroker:
    """Jobs in a store, announced through RabbitMQ.

    What changes is stored first; then the bell rings. A crash in between delays a job by a second, after which an idle
    worker looks by itself.

    Args:
        store: Has the jobs.
    """

    def __init__(self, url: BrokerURL, store: Broker) -> None:
        self._parsed = url
        self._store = store
        self.url = url.shown
        self.capabilities = msgspec.structs.replace(store.capabilities, name=f"rabbitmq with {store.capabilities.name}")
        self._outage = Outage(url.server)
        self._hammer, self._ear = Hammer(url, self._outage), Ear(url, self._outage)

    def __repr__(self) -> str:
        return f"RabbitBroker({self.url!r})"

    def notices(self) -> list[str]:
        return self._store.notices()

    def open(self) -> None:
        self._store.open()
        link = self._hammer.link
        with self._outage.raising():
            if not link.wait_tried(_FIRST) and link.refused is not None:  # that it does not answer is no error
                raise link.refused

    def close(self) -> None:
        self._ear.close()
        self._hammer.close()
        self._store.close()

    def migrate(self) -> tuple[int, int]:
        return self._store.migrate()

    def sql(self, what: Script) -> str:
        return self._store.sql(what)

    # -- producers

    def enqueue(self, jobs: Sequence[Job], *, connection: object | None = None, timeout: float = 5.0) -> list[Enqueued]:
        stored = self._store.enqueue(jobs, connection=connection, timeout=timeout)
        self._ring_if(sum(done.created for done in stored))
        return stored

    # -- workers

    def wait(self, timeout: float) -> bool:
        return self._ear.wait(timeout)

    def interrupt(self) -> None:
        self._ear.interrupt()
        self._store.interrupt()

    def exchange(self, worker: str, outcomes: Sequence[Outcome], want: Want) -> Exchange:
        done = self._store.exchange(worker, outcomes, want)
        self._ring_if(sum(outcome.state is JobState.AVAILABLE for outcome in outcomes))
        return done

    def heartbeat(self, worker: WorkerInfo) -> list[Command]:
        return self._store.heartbeat(worker)

    def report(self, worker: str, updates: Sequence[Update]) -> list[int | str]:
        return self._store.report(worker, updates)

    def reconcile(self, worker: str, held: Sequence[tuple[int | str, int]]) -> list[int | str]:
        return self._store.reconcile(worker, held)

    def retire(self, worker: str) -> int:
        back = self._store.retire(worker)
        self._ring_if(back)
        return back

    def transaction(self, connection: object | None = None) -> Transaction:
        return self._store.transaction(connection)

    # -- upkeep

    def promote(self, limit: int) -> int:
        changed = self._store.promote(limit)
        self._ring_if(changed)
        return changed

    def reap(self, limit: int) -> list[str]:
        reaped = self._store.reap(limit)
        self._ring_if(len(reaped))
        return reaped

    def prune(self, limit: int, retention: Retention) -> int:
        return self._store.prune(limit, retention)

    # -- operators and waiting callers

    def cancel(self, ids: Sequence[str]) -> list[CancelResult]:
        results = self._store.cancel(ids)
        self._ring_if(results.count(CancelResult.REQUESTED) + results.count(CancelResult.CANCELLED))
        return results

    def retry(self, ids: Sequence[str], *, payload: bytes | None = None) -> list[RetryResult]:
        results = self._store.retry(ids, payload=payload)
        self._ring_if(results.count(RetryResult.RETRIED))
        return results

    def ask_stack(self, id: str) -> bool:
        asked = self._store.ask_stack(id)
        self._ring_if(asked)
        return asked

    def delete(self, ids: Sequence[str]) -> list[DeleteResult]:
        return self._store.delete(ids)

    def pause(self, queue: str, until: int | None = None) -> None:
        self._store.pause(queue, until)

    def resume(self, queue: str) -> None:
        self._store.resume(queue)
        self._hammer.ring()

    def purge(self, queue: str, limit: int) -> int:
        return self._store.purge(queue, limit)

    def _ring_if(self, changed: int) -> None:
        if changed:
            self._hammer.ring()

    def get(self, ids: Sequence[str]) -> list[Job | None]:
        return self._store.get(ids)

    def runs(self, id: str) -> list[RunInfo]:
        return self._store.runs(id)

    def find(self, where: JobFilter) -> list[Job]:
        return self._store.find(where)

    def queues(self) -> list[QueueInfo]:
        return self._store.queues()

    def workers(self) -> list[WorkerInfo]:
        return self._store.workers()

    def watch(self, seen: Mapping[str, JobUpdate | None], timeout: float) -> list[JobUpdate]:
        return self._store.watch(seen, timeout)

    def diagnose(self, *, retention: Retention, full: bool = False) -> Diagnosis:
        found = self._store.diagnose(retention=retention, full=full)
        return Diagnosis([*found.findings, self._finding()], found.view)

    def _finding(self) -> Finding:
        link, server = self._hammer.link, self._parsed.server
        meanwhile = "jobs run, but workers look for them once a second"
        with self._outage.raising():
            up = link.wait_tried(_FIRST)
        if up and (trouble := self._hammer.test(_FIRST)):
            what, _, remedy = trouble.partition("; ")
            return Finding(Level.ERROR, "rabbitmq", f"{what}; {meanwhile}", remedy)
        if up:
            return Finding(Level.OK, "rabbitmq", f"RabbitMQ {link.version} at {server} answers")
        if link.refused is not None:
            what, _, remedy = one_line(link.refused).partition("; ")
            return Finding(Level.ERROR, "rabbitmq", f"{what}; {meanwhile}", remedy)
        what = f"RabbitMQ at {server} does not answer ({link.why}); {meanwhile}"
        return Finding(Level.ERROR, "rabbitmq", what, "start the server, or correct the URL")
