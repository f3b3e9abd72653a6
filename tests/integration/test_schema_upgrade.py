"""A file of schema version 1 becomes one of this version: nothing is lost, whoever comes first; old programs refuse it.

``version-1.sql`` is the dump of a file that a program of version 1 made: jobs in every state, a paused queue, a key.
"""

import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mouso.brokers.base import Update, Want
from mouso.brokers.sqlite import SQLiteBroker, schema
from mouso.errors import BrokerError, SchemaError
from mouso.job import Charge, Job, JobState, LogLine, Outcome, encode_log
from mouso.testing.clock import FakeClock
from mouso.urls import BrokerURL
from tests.integration.harness import ROOT

DUMP = (ROOT / "tests" / "integration" / "version-1.sql").read_text("utf-8")
STATES = {
    "completed": JobState.COMPLETED,
    "dead": JobState.DEAD,
    "cancelled": JobState.CANCELLED,
    "retryable": JobState.RETRYABLE,
    "running": JobState.RUNNING,
    "available": JobState.AVAILABLE,
    "scheduled": JobState.SCHEDULED,
    "parked": JobState.AVAILABLE,
    "unique": JobState.RUNNING,
}
WORKER = "1" * 16


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of version 1."""
    path = tmp_path / "jobs.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(DUMP)
        connection.execute("PRAGMA journal_mode = wal")
    return path


@pytest.fixture
def broker(file: Path) -> Iterator[SQLiteBroker]:
    with closing(at(file)) as broker:
        yield broker


def at(file: Path) -> SQLiteBroker:
    return SQLiteBroker(BrokerURL.parse(f"sqlite:///{file}"), clock=FakeClock())


def version(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        return schema.version(connection)


def tables(file: Path) -> dict[str, str]:
    """The statements that made a file's tables and indexes, without regard to spaces."""
    with closing(sqlite3.connect(file)) as connection:
        found = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    return {name: re.sub(r'[\s"]+', " ", sql).replace(" ,", ",").replace(" )", ")") for name, sql in found}


def test_jobs_are_as_they_were(broker: SQLiteBroker, file: Path) -> None:
    assert version(file) == 1
    found = {job.id: job for job in broker.get(list(STATES)) if job is not None}
    assert version(file) == schema.VERSION
    assert {id: job.state for id, job in found.items()} == STATES
    completed, dead = found["completed"], found["dead"]
    assert (completed.result, completed.run_seconds, completed.worker) == (b"42", 1.5, WORKER)
    assert (completed.started_at, completed.cpu_seconds, completed.peak_memory, completed.pid) == (None,) * 4
    [error] = dead.errors
    assert (error.type, error.message, error.worker, error.run_seconds, error.token) == (
        "ValueError",
        "no",
        WORKER,
        None,
        0,
    )
    assert found["running"].progress is not None
    assert found["parked"].parked
    assert {queue.name: queue.paused for queue in broker.queues()} == {"default": False, "mail": True}
    assert [broker.runs(id) for id in STATES] == [[]] * len(STATES)
    assert broker.enqueue([Job(id="new", task="work", unique="key")])[0].id == "unique"


def test_what_is_new_works(broker: SQLiteBroker) -> None:
    assert broker.ask_stack("running") is True
    assert broker.report(WORKER, [Update(5, 1, log=encode_log([LogLine(1, "INFO", "x")], 0), stack="here")]) == []
    took: dict[str, Any] = {"started_at": 1, "cpu_seconds": 0.5, "peak_memory": 1 << 20, "pid": 12}
    failed = Outcome(9, 1, "unique", "work", "default", JobState.RETRYABLE, 2.0, charge=Charge.ATTEMPT, delay=1, **took)
    ends = [Outcome(5, 1, "running", "work", "default", JobState.COMPLETED, 2.0, b"1", **took), failed]
    assert broker.exchange(WORKER, ends, Want(limit=0)).fenced == []
    [running], [unique] = broker.runs("running"), broker.runs("unique")
    assert (running.end, running.pid, running.lines, running.stack and running.stack.text) == (
        "completed",
        12,
        (LogLine(1, "INFO", "x"),),
        "here",
    )
    assert (unique.end, unique.cpu_seconds) == ("failed", 0.5)
    broker.retry(["dead"])
    assert [job.id for job in broker.exchange(WORKER, [], Want(limit=1, shares=[("default", 1)])).leases] == ["dead"]


def test_an_upgraded_file_is_like_a_new_one(broker: SQLiteBroker, file: Path, tmp_path: Path) -> None:
    assert broker.migrate() == (1, schema.VERSION)
    assert broker.migrate() == (schema.VERSION, schema.VERSION)
    with closing(at(tmp_path / "new.db")) as fresh:
        fresh.open()
    assert tables(file) == tables(tmp_path / "new.db")
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_that_upgrade_at_once(file: Path) -> None:
    """Two at once: one does it, the other finds it done."""
    program = (
        "import sys\n"
        "from mouso.brokers import connect\n"
        "broker = connect(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(*broker.migrate())\n"
        "broker.close()\n"
    )
    command = [sys.executable, "-c", program, f"sqlite:///{file}"]
    crowd = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    for process in crowd:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    ends = []
    for process in crowd:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in crowd:
        with process:
            out, err = process.communicate(timeout=30)
            assert (process.returncode, err) == (0, "")
            ends.append(out.strip())
    assert sorted(ends) == [f"1 {schema.VERSION}"] + [f"{schema.VERSION} {schema.VERSION}"] * (len(crowd) - 1)
    assert version(file) == schema.VERSION


def test_an_upgrade_that_fails_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tables(file)
    broken = (*schema._STEPS[:1], schema._STEPS[1] + ";\nCREATE TABLE mouso_twice (x, x)")
    monkeypatch.setattr(schema, "_STEPS", broken)
    with closing(at(file)) as broker, pytest.raises(BrokerError):
        broker.open()
    assert (version(file), tables(file)) == (1, before)
    monkeypatch.undo()
    with closing(at(file)) as broker:
        assert {id: job.state for id, job in zip(STATES, broker.get(list(STATES)), strict=True) if job} == STATES


def test_a_table_of_another_program_is_in_the_way_of_an_upgrade(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE mouso_runs (x)")
    connection.close()
    before = tables(file)
    with closing(at(file)) as broker, pytest.raises(SchemaError, match="has a table mouso_runs that is not Mouso's"):
        broker.open()
    assert (version(file), tables(file)) == (1, before)


def test_an_old_program_refuses_a_new_file(broker: SQLiteBroker, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, new = broker.migrate()
    monkeypatch.setattr(schema, "VERSION", 1)
    with closing(at(file)) as old, pytest.raises(SchemaError, match=f"schema version {new}, .* up to 1;"):
        old.open()


def test_an_old_worker_that_has_the_file_open_goes_on(broker: SQLiteBroker, file: Path) -> None:
    """A new program may come before the last worker of the old one has ended: what that writes still fits."""
    with closing(sqlite3.connect(file, isolation_level=None)) as old:
        old.execute("SELECT 1 FROM mouso_jobs").fetchone()
        broker.open()
        old.execute(
            "INSERT OR IGNORE INTO mouso_history (seq, state, queue, finished_at, run_seconds, worker, claims,"
            " attempts, crashes, releases, expires_at, keep_until, progress, result)"
            " SELECT seq, 'completed', queue, ?, o.column3, ?, claims, attempts, crashes, releases, expires_at,"
            " o.column4, progress, o.column5"
            " FROM (VALUES (?, ?, ?, ?, ?)) o CROSS JOIN mouso_live l ON l.seq = o.column1"
            " WHERE l.claims = o.column2 AND l.state = 'running'",
            (1_750_000_003_000, WORKER, 5, 1, 0.25, None, b"7"),
        )
        old.execute("DELETE FROM mouso_live WHERE seq IN (SELECT value FROM json_each('[5]')) AND state = 'running'")
        old.execute('INSERT INTO mouso_errors VALUES (9, 1, \'{"type":"ValueError"}\')')
        old.execute("UPDATE mouso_live SET state = 'available', due = NULL, worker = NULL WHERE seq = 9")
    completed, failed = broker.get(["running", "unique"])
    assert completed is not None
    assert failed is not None
    assert (completed.state, completed.result, completed.run_seconds) == (JobState.COMPLETED, b"7", 0.25)
    assert (failed.state, failed.errors[0].type) == (JobState.AVAILABLE, "ValueError")
    assert broker.runs("running") == broker.runs("unique") == []
