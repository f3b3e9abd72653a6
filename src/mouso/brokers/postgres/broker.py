"""The verbs on PostgreSQL: each calls the function of its name in the database."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from psycopg import pq

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
from mouso.brokers.postgres import joining, reading, rows, schema, wire
from mouso.brokers.postgres.bell import CALLERS, WORKERS, Ear
from mouso.brokers.postgres.floors import Floors
from mouso.brokers.postgres.link import Link, Values
from mouso.brokers.postgres.wire import BIGINT, INTEGER
from mouso.clock import SYSTEM, Clock
from mouso.errors import CapabilityError
from mouso.job import Job, JobState, Outcome, Progress, RunInfo, check_transition
from mouso.urls import BrokerURL

_SINGLE = ("enqueue_one", "retire", "promote", "prune", "ask_stack", "pause", "resume", "purge")
_LOOK_AGAIN = 1.0
"""Seconds after which a waiting caller looks by itself: rings are hints."""


class PostgresBroker:
    """Jobs in a schema of a PostgreSQL database."""

    def __init__(self, url: BrokerURL, *, clock: Clock = SYSTEM) -> None:
        self.url = url.shown
        self._given = url
        self._notify = url.params.get("notify", "on") == "on"
        self.capabilities = Capabilities(name="postgresql", transactional=True, push=self._notify, remote=True)
        self._clock = clock
        self._boot = _boot_id()
        self._name = url.params.get("schema", "mouso")
        self._schema = schema.quoted(self._name)
        self._link = Link(url)
        self._calls: dict[str, bytes] = {}
        self._turn = ""
        self._floors = Floors()
        self._joined: weakref.WeakSet[Any] = weakref.WeakSet()
        self._opened = False
        self._opening = threading.Lock()
        self._ears: dict[str, Ear] = {}
        self._ears_lock = threading.Lock()
        self._pid = os.getpid()
        self._interrupted: set[str] = set()

    def __repr__(self) -> str:
        return f"PostgresBroker({self.url!r})"

    def notices(self) -> list[str]:
        return []

    def open(self, timeout: float = 5.0) -> None:
        with self._opening:
            if not self._opened:
                schema.open_store(self._link, self._name, timeout)
                self._opened = True

    def close(self) -> None:
        with self._ears_lock:
            if self._pid == os.getpid():
                for ear in self._ears.values():
                    ear.close()
            self._ears.clear()
        self._opened = False
        self._link.close()

    def migrate(self) -> tuple[int, int]:
        return schema.migrate(self._link, self._name)

    def sql(self, what: Script) -> str:
        return schema.sql(self._name) if what is Script.SCHEMA else schema.roles_sql(self._name)

    def _call(self, verb: str, *values: bytes | None, timeout: float = 5.0, again: bool = True) -> pq.abc.PGresult:
        if not self._opened:
            deadline = SYSTEM.monotonic() + timeout
            self.open(timeout)
            timeout = deadline - SYSTEM.monotonic()
        return self._link.call(self._statement(verb, len(values)), values, timeout=timeout, again=again)

    def _statement(self, verb: str, count: int) -> bytes:
        sql = self._calls.get(verb)
        if sql is None:
            marks = ", ".join(f"${n}" for n in range(1, count + 1))
            rows_of = (
                "" if verb in _SINGLE else "* FROM "
            )  # a function that gives one value is planned in half the time
            sql = self._calls[verb] = f"SELECT {rows_of}{self._schema}.{verb}({marks})".encode()
        return sql

    def _now(self) -> bytes | None:
        """What the database is told to take for now: nothing, so that it asks its own clock, but in tests."""
        return None if self._clock is SYSTEM else wire.number(self._clock.now())

    def _host(self) -> tuple[bytes | None, bytes | None]:
        """This host, and what its steady clock says."""
        return wire.text(self._boot), wire.number(self._clock.steady())

    # -- producers

    def enqueue(self, jobs: Sequence[Job], *, connection: object | None = None, timeout: float = 5.0) -> list[Enqueued]:
        if not jobs:
            return []
        if connection is None and len(jobs) == 1 and jobs[0].unique is None:
            return self._enqueue_one(jobs[0], timeout)
        values = (self._now(), *rows.jobs_columns(jobs))
        if connection is None:
            found = self._call("enqueue", *values, timeout=timeout)
        else:
            found = self._run_in(connection, "enqueue", *values, timeout=timeout)
        enqueued = [Enqueued(job.id, True) for job in jobs]
        for row in range(found.ntuples):
            place, holder = found.get_value(row, 0), found.get_value(row, 1)
            enqueued[int.from_bytes(place or b"") - 1] = Enqueued((holder or b"").decode(), False)
        return enqueued

    def _enqueue_one(self, job: Job, timeout: float) -> list[Enqueued]:
        """A third less work for both sides than a batch of one."""
        found = self._call("enqueue_one", self._now(), *rows.job_values(job), timeout=timeout)
        return [Enqueued(job.id, found.get_value(0, 0) == b"\x01")]

    # -- workers

    def wait(self, timeout: float) -> bool:
        return self._ear(WORKERS).wait(timeout) is not Woken.TIMEOUT

    def interrupt(self) -> None:
        with self._ears_lock:
            for kind in (WORKERS, CALLERS):
                if kind in self._ears:
                    self._ears[kind].interrupt()
                else:
                    self._interrupted.add(kind)

    def exchange(self, worker: str, outcomes: Sequence[Outcome], want: Want) -> Exchange:
        for outcome in outcomes:
            check_transition(JobState.RUNNING, outcome.state)
        strange = [outcome.key for outcome in outcomes if not rows.possible(outcome.key)]
        if strange:
            outcomes = [outcome for outcome in outcomes if rows.possible(outcome.key)]
        if any(outcome.state is not JobState.COMPLETED for outcome in outcomes):
            self._floors.forget()
        found = self._call("exchange", *self._exchange_values(worker, outcomes, want), again=False)
        exchange, turn, slow = rows.exchange(found)
        self._floors.claimed(exchange.leases, slow=slow)
        self._turn = turn or self._turn
        exchange.fenced += strange
        return exchange

    def _exchange_values(self, worker: str, outcomes: Sequence[Outcome], want: Want) -> Values:
        shares, floors = want.shares, self._floors.current()
        return (
            self._now(), wire.text(worker), *self._host(), *rows.outcomes_columns(outcomes, worker),
            wire.small(want.limit),
            None if shares is None else wire.texts([queue for queue, _ in shares]),
            None if shares is None else wire.numbers(INTEGER, [share for _, share in shares]),
            None if want.tasks is None else wire.texts(list(want.tasks)),
            wire.text(self._turn),
            wire.texts(list(floors)), wire.numbers(BIGINT, list(floors.values())),
        )  # fmt: skip

    def heartbeat(self, worker: WorkerInfo) -> list[Command]:
        self._floors.forget()
        info = msgspec.json.encode(worker)
        found = self._call(
            "heartbeat", self._now(), *self._host(), wire.text(worker.id), info, wire.texts(worker.tasks)
        )
        return [
            Command(kind.decode(), int.from_bytes(key), int.from_bytes(token))
            for kind, key, token in reading.table(found)
        ]

    def report(self, worker: str, updates: Sequence[Update]) -> list[int | str]:
        strange = [update.key for update in updates if not rows.possible(update.key)]
        good = [update for update in updates if rows.possible(update.key)]
        if not good:
            return strange
        found = self._call("report", self._now(), wire.text(worker), *rows.updates_columns(good))
        return [*strange, *(int.from_bytes(key, signed=True) for (key,) in reading.table(found))]

    def reconcile(self, worker: str, held: Sequence[tuple[int | str, int]]) -> list[int | str]:
        self._floors.forget()
        strange = [key for key, _ in held if not rows.possible(key)]
        good = [(int(key), token) for key, token in held if rows.possible(key)]
        keys, tokens = (wire.numbers(BIGINT, [pair[n] for pair in good]) for n in (0, 1))
        found = self._call("reconcile", self._now(), wire.text(worker), keys, tokens)
        lost = {int.from_bytes(key, signed=True) for (key,) in reading.table(found)}
        return [key for key, _ in held if key in lost or key in strange]

    def retire(self, worker: str) -> int:
        self._floors.forget()
        return self._number("retire", self._now(), wire.text(worker))

    def transaction(self, connection: object | None = None) -> joining.PostgresTransaction:
        if not self._opened:
            self.open()
        transaction = joining.PostgresTransaction(self._link, connection, self._settle_in)
        if connection is None:
            self._joined.add(joining.driver(transaction.connection))
        else:
            self._check_store(connection, 5.0)
        return transaction

    def _settle_in(self, connection: object, worker: str, outcome: Outcome, progress: Progress | None) -> bool:
        if progress is not None:
            update = rows.updates_columns([Update(outcome.key, outcome.token, progress)])
            self._run_in(connection, "report", self._now(), wire.text(worker), *update)
        found = self._run_in(connection, "exchange", *self._exchange_values(worker, [outcome], Want(limit=0)))
        return not rows.exchange(found)[0].fenced

    def _run_in(self, connection: object, verb: str, *values: bytes | None, timeout: float = 5.0) -> pq.abc.PGresult:
        deadline = SYSTEM.monotonic() + timeout
        self._check_store(connection, timeout)
        sql = self._statement(verb, len(values))
        return joining.run(connection, sql, values, timeout=deadline - SYSTEM.monotonic(), shown=self._link.shown)

    def _check_store(self, connection: object, timeout: float) -> None:
        """Sees, once for each connection of a caller, that it leads to this store: in another one jobs would be lost.

        Raises:
            CapabilityError: It does not.
        """
        joining.check(connection, self._link.shown)
        driver = joining.driver(connection)
        if driver in self._joined:
            return
        sql = schema.identity_sql(self._name)
        theirs = joining.run(connection, sql, (), timeout=timeout, shown=self._link.shown)
        if reading.table(theirs) != reading.table(self._link.call(sql, timeout=timeout)):
            raise CapabilityError(
                f"the connection leads to another store than {self._link.shown}; use one to the database that the "
                "broker's URL names"
            )
        self._joined.add(driver)

    # -- upkeep

    def promote(self, limit: int) -> int:
        self._floors.forget()
        return self._number("promote", self._now(), wire.small(limit))

    def reap(self, limit: int) -> list[str]:
        self._floors.forget()
        found = self._call("reap", self._now(), *self._host(), wire.small(limit))
        return [worker.decode() for (worker,) in reading.table(found)]

    def prune(self, limit: int, retention: Retention) -> int:
        bounds = (retention.finished, retention.dead, retention.max_finished, retention.max_dead)
        return self._number("prune", self._now(), *self._host(), wire.small(limit), *map(wire.number, bounds))

    def _number(self, verb: str, *values: bytes | None) -> int:
        return int.from_bytes(self._call(verb, *values).get_value(0, 0) or b"")

    # -- operators and waiting callers

    def cancel(self, ids: Sequence[str]) -> list[CancelResult]:
        found = self._call("cancel", self._now(), *rows.ids(ids)) if ids else None
        return [CancelResult(word.decode()) for (word,) in reading.table(found)]

    def retry(self, ids: Sequence[str], *, payload: bytes | None = None) -> list[RetryResult]:
        self._floors.forget()
        found = self._call("retry", self._now(), *rows.ids(ids), payload) if ids else None
        return [RetryResult(word.decode()) for (word,) in reading.table(found)]

    def ask_stack(self, id: str) -> bool:
        found = self._call("ask_stack", wire.text(id), wire.small(rows.day(id)))
        return found.get_value(0, 0) == b"\x01"

    def delete(self, ids: Sequence[str]) -> list[DeleteResult]:
        found = self._call("delete", *rows.ids(ids)) if ids else None
        return [DeleteResult(word.decode()) for (word,) in reading.table(found)]

    def pause(self, queue: str, until: int | None = None) -> None:
        self._call("pause", wire.text(queue), wire.number(until))

    def resume(self, queue: str) -> None:
        self._call("resume", wire.text(queue))

    def purge(self, queue: str, limit: int) -> int:
        return self._number("purge", wire.text(queue), wire.small(limit))

    def _query(self, sql: str, *values: bytes | None) -> pq.abc.PGresult:
        if not self._opened:
            self.open()
        return self._link.call(sql.replace("{schema}", self._schema).encode(), values, timeout=30.0, common=False)

    def get(self, ids: Sequence[str]) -> list[Job | None]:
        return reading.get(self._query, ids)

    def runs(self, id: str) -> list[RunInfo]:
        return reading.runs(self._query, id)

    def find(self, where: JobFilter) -> list[Job]:
        return reading.find(self._query, where)

    def queues(self) -> list[QueueInfo]:
        return reading.queues(self._query, self._now())

    def workers(self) -> list[WorkerInfo]:
        return reading.workers(self._query, self._now(), *self._host())

    def diagnose(self, *, retention: Retention, full: bool = False) -> Diagnosis:
        from mouso.brokers.postgres import diagnosis  # for the one program that asks

        link = Link(self._given)
        try:
            findings, readable = diagnosis.examine(link, self._name, self._clock, retention, full=full)
        finally:
            link.close()
        return Diagnosis(findings, PostgresBroker(self._given, clock=self._clock) if readable else None)

    def watch(self, seen: Mapping[str, JobUpdate | None], timeout: float) -> list[JobUpdate]:
        deadline = self._clock.monotonic() + timeout
        ids = list(seen)
        ear = self._ear(CALLERS)
        while True:
            found = reading.look(self._call("look", *rows.ids(ids)))
            changed = [now for id in ids if (now := found.get(id) or JobUpdate(id, None)) != seen[id]]
            left = deadline - self._clock.monotonic()
            if changed or left <= 0:
                return changed
            if ear.wait(min(left, _LOOK_AGAIN)) is Woken.INTERRUPTED:
                return []

    def _ear(self, kind: str) -> Ear:
        with self._ears_lock:
            if self._pid != os.getpid():
                self._pid, self._ears = os.getpid(), {}  # a forked child's rings would come to its parent
            if kind not in self._ears:
                self.open()
                self._ears[kind] = Ear(self._link, self._schema, kind, listens=self._notify)
                if kind in self._interrupted:
                    self._interrupted.remove(kind)
                    self._ears[kind].interrupt()
            return self._ears[kind]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
