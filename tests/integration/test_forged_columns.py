"""Every column of the store, overwritten by another program with all that SQLite lets it hold: no verb of the broker
raises anything of its own or of SQLite, and the jobs beside it are claimed and listed as ever."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from mouso.brokers.base import JobFilter, Retention, Update, Want, WorkerInfo
from mouso.brokers.sqlite import SQLiteBroker
from mouso.errors import ErrorInfo
from mouso.job import Charge, Job, JobState, Lease, LogLine, Outcome, Progress, UniqueScope, encode_log
from mouso.urls import BrokerURL

WORKER = WorkerInfo(id="1" * 16, name="one", host="here", pid=1, slots=8, tasks=("known",))
OTHER = msgspec.structs.replace(WORKER, id="2" * 16, name="two")
WANT = Want(limit=100, tasks=frozenset({"known"}))
NOTHING = Want(limit=0)
BROKEN = ("dead", "completed", "running", "parked", "available", "scheduled")
SOUND = {"sound1", "sound2"}

VALUES: tuple[object, ...] = (
    None, "", "bogus", "a\0b", "running", "dead", "parked", "null", "[]", '{"x":' + "[" * 100_000, b"\xff\0",
    -(2**63), -1, 2**63 - 1, float("inf"), float("-inf"),
)  # fmt: skip
NOT_UTF8 = "CAST(x'ff6162' AS TEXT)"
COLUMNS = {
    "mouso_jobs": "id task queue priority enqueued_at codec options unique_key unique_scope unique_period payload",
    "mouso_live": "state queue priority due claims attempts crashes releases worker cancel expires_at unique_key"
    " unique_queued progress",
    "mouso_history": "state queue finished_at run_seconds worker claims attempts crashes releases expires_at keep_until"
    " reason progress result started_at cpu_seconds peak_memory pid",
    "mouso_errors": "claims error",
    "mouso_runs": "claims attempt asked worker run log stack",
    "mouso_workers": "id boot lease_until beat reaped_at rejoins info",
    "mouso_tallies": "queue state n",
    "mouso_queues": "name paused paused_until",
    "mouso_parked": "task",
    "mouso_unique_periods": "key id until",
}
ROWS = {
    "mouso_jobs": "id IN ('dead', 'completed', 'running', 'parked', 'available')",
    "mouso_live": "seq IN (SELECT seq FROM mouso_jobs WHERE id IN ('running', 'parked', 'available'))",
}
ONE_ROW = {
    ("mouso_jobs", "id"): "id = 'available'",
    ("mouso_live", "unique_key"): "seq = (SELECT seq FROM mouso_jobs WHERE id = 'available')",
    ("mouso_workers", "id"): f"id = '{OTHER.id}'",
    ("mouso_queues", "name"): "name = 'paused'",
    ("mouso_tallies", "queue"): "state = 'dead'",
    ("mouso_tallies", "state"): "state = 'dead'",
}


def outcome(lease: Lease, state: JobState, **facts: object) -> Outcome:
    return Outcome(
        lease.key, lease.token, lease.id, lease.task, lease.queue, state, started_at=5, pid=3, **facts  # type: ignore[arg-type]  # why: a shorthand
    )  # fmt: skip


def filled(path: Path) -> tuple[SQLiteBroker, Lease]:
    """A store with a job in each kind of state, and the lease of the one that runs."""
    broker = SQLiteBroker(BrokerURL.parse(f"sqlite:///{path}?synchronous=normal"))
    broker.heartbeat(WORKER)
    broker.heartbeat(OTHER)
    leases = {}
    for id in ("dead", "completed", "running"):
        broker.enqueue([Job(id=id, task="known")])
        (leases[id],) = broker.exchange(WORKER.id, (), WANT).leases
        update = Update(leases[id].key, leases[id].token, Progress(1), encode_log([LogLine(1, "INFO", "hello")], 0))
        assert broker.report(WORKER.id, [update]) == []
    error = ErrorInfo(type="ValueError", message="boom")
    failed = outcome(leases["dead"], JobState.DEAD, charge=Charge.ATTEMPT, reason="attempts", error=error)
    broker.exchange(WORKER.id, [failed, outcome(leases["completed"], JobState.COMPLETED)], NOTHING)
    broker.enqueue([Job(id="parked", task="unknown")])
    broker.exchange(WORKER.id, (), WANT)
    broker.enqueue(
        [
            Job(id="available", task="known", unique="k", unique_scope=UniqueScope.PERIOD, unique_period=10**6),
            Job(id="scheduled", task="known", delay=10**6),
            Job(id="late", task="nobody"),
            *(Job(id=id, task="known") for id in sorted(SOUND)),
        ]
    )
    broker.pause("paused")
    return broker, leases["running"]


def forge(path: Path, table: str, column: str, value: object) -> bool:
    """Overwrites a column as another program might; False if SQLite itself refuses it."""
    where = ONE_ROW.get((table, column)) or ROWS.get(table, "1")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        placeholder, values = (NOT_UTF8, ()) if value is NOT_UTF8 else ("?", (value,))
        try:
            connection.execute(f"UPDATE {table} SET {column} = {placeholder} WHERE {where}", values)
        except sqlite3.IntegrityError:
            return False
    return True


def look(broker: SQLiteBroker) -> None:
    assert {job.id for job in broker.find(JobFilter())} >= SOUND
    broker.queues()
    broker.workers()
    for id in BROKEN:
        for job in broker.get([id]):
            assert job is None or isinstance(job.state, JobState)
        broker.runs(id)
        broker.watch({id: None}, 0)


def verbs(broker: SQLiteBroker, running: Lease) -> Iterator[Callable[[], object]]:
    """All that changes anything, in the order in which a worker and an operator come to it."""
    update = Update(running.key, running.token, Progress(2), encode_log([LogLine(2, "INFO", "again")], 0), "stack")
    failed = outcome(running, JobState.RETRYABLE, charge=Charge.ATTEMPT, error=ErrorInfo(type="E"), delay=10**6)
    yield lambda: broker.ask_stack("running")
    yield lambda: broker.heartbeat(WORKER)
    yield lambda: broker.promote(100)
    yield lambda: broker.report(WORKER.id, [update])
    yield lambda: broker.exchange(WORKER.id, [failed], NOTHING)
    yield lambda: broker.reconcile(WORKER.id, [])
    yield lambda: broker.heartbeat(msgspec.structs.replace(WORKER, tasks=("known", "unknown")))
    yield lambda: broker.enqueue([Job(id="new", task="known", unique="k")])
    yield lambda: broker.prune(100, Retention())
    for verb in (broker.retry, broker.cancel, broker.retry):
        for id in BROKEN:
            yield lambda verb=verb, id=id: verb([id])  # type: ignore[misc]  # why: binds the loop variables
    yield lambda: broker.exchange(WORKER.id, (), WANT)
    yield lambda: broker.retire(WORKER.id)
    yield lambda: broker.reap(100)
    yield lambda: broker.purge("default", 100)
    yield lambda: broker.delete(BROKEN)


@pytest.mark.filterwarnings("ignore")  # why: the log of jobs that cannot be claimed
@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table, columns in COLUMNS.items() for column in columns.split()]
)
def test_whatever_a_column_holds(tmp_path: Path, table: str, column: str) -> None:
    tried = 0
    for number, value in enumerate((*VALUES, NOT_UTF8)):
        path = tmp_path / f"{number}.db"
        broker, running = filled(path)
        with closing(broker):
            if not forge(path, table, column, value):
                continue
            tried += 1
            look(broker)
            claimed = {lease.id for lease in broker.exchange(WORKER.id, (), WANT).leases}
            assert claimed >= SOUND, value
            for verb in verbs(broker, running):
                verb()
            broker.enqueue([Job(id="last", task="known", queue="last")])
            broker.heartbeat(WORKER)
            assert [lease.id for lease in broker.exchange(WORKER.id, (), WANT).leases][-1] == "last"
            broker.find(JobFilter())
    assert tried


def test_every_column_is_tried(tmp_path: Path) -> None:
    broker, _ = filled(tmp_path / "jobs.db")
    with closing(broker), closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        for table in set(tables) - {"mouso_meta", "sqlite_sequence"}:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            assert set(columns) - {"seq", "n"} == set(COLUMNS[table].split()) - {"n"}, table


@pytest.mark.parametrize("table", ["mouso_live", "mouso_history", "mouso_runs", "mouso_errors", "mouso_parked"])
def test_rows_that_are_gone(tmp_path: Path, table: str) -> None:
    path = tmp_path / "jobs.db"
    broker, running = filled(path)
    with closing(broker):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(
                f"DELETE FROM {table} WHERE seq NOT IN (SELECT seq FROM mouso_jobs WHERE id LIKE 'sound_')"
            )
        look(broker)
        for verb in verbs(broker, running):
            verb()
