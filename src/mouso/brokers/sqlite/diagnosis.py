"""What is wrong with a SQLite file, or about to be: its place, who holds it, what it holds. Nothing is changed."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

from mouso.brokers.base import Finding, Level, Retention
from mouso.brokers.sqlite import faults, ground, rows, schema
from mouso.brokers.sqlite.locks import READERS, WHOLE, WRITER, holders
from mouso.brokers.sqlite.looking import connect, process, stopped
from mouso.brokers.sqlite.place import examine_place, size
from mouso.clock import SYSTEM, Clock

QUICK = 5.0
"""Seconds that the look at the file's pages may take, unless all of it is asked for."""
_LONG_LOG = 64 << 20
_FUTURE = 2000
_LATE = 10_000
_UNPRUNED = 2 * 3_600_000
_SAMPLE = 5000
_LOOKS, _BETWEEN = 10, 0.05
_TRIES = 5

Facts = Iterator[Finding]


def examine(path: str, clock: Clock, retention: Retention, *, full: bool) -> tuple[list[Finding], bool]:
    """Looks at everything; returns what was found, and whether jobs can be read."""
    findings = [_engine(), *examine_place(path)]
    path = os.path.realpath(path)
    if not os.path.isfile(path) or not os.access(path, os.R_OK):
        return findings, False
    findings += [*_times(path, clock), *_lock(path)]
    for _ in range(_TRIES):
        before = _stamp(path)
        inside, readable = _inside(path, clock, retention, full=full)
        if before == _stamp(path) or all(finding.level is not Level.ERROR for finding in inside):
            break  # else somebody changed it meanwhile, perhaps what was being read
    return findings + inside, readable


def _stamp(path: str) -> list[tuple[int, int] | None]:
    """What differs when somebody has opened, written or closed the file."""
    stamps: list[tuple[int, int] | None] = []
    for name in (path, path + "-wal"):
        try:
            found = os.stat(name)
            stamps.append((found.st_mtime_ns, found.st_size))
        except OSError:
            stamps.append(None)
    return stamps


def _engine() -> Finding:
    if sqlite3.sqlite_version_info < ground.OLDEST_ENGINE:
        oldest = ".".join(map(str, ground.OLDEST_ENGINE[:2]))
        what = f"SQLite {sqlite3.sqlite_version} is too old"
        return Finding(Level.ERROR, "engine", what, f"use a Python that is built with {oldest} or newer")
    what, _, remedy = ground.engine_notice().partition("; ")
    if what:
        return Finding(Level.WARNING, "engine", what, remedy)
    return Finding(Level.OK, "engine", f"SQLite {sqlite3.sqlite_version}")


def _times(path: str, clock: Clock) -> Facts:
    """The file system's clock: what was written cannot be younger than now."""
    for name in (path, path + "-wal"):
        with suppress(OSError):
            ahead = os.stat(name).st_mtime_ns // 1_000_000 - clock.now()
            if ahead > _FUTURE:
                what = f"{name} was changed {ahead / 1000:,.0f} s in the future"
                remedy = "set the clock of this machine; jobs are due and expire by it"
                yield Finding(Level.WARNING, "clock", what, remedy)


# -- who holds a lock --------------------------------------------------------------------------------------------------


def _lock(path: str) -> Facts:
    """A writer that does not let go: it holds the lock whenever one looks."""
    pids = holders(path + "-shm", WRITER)
    pause = threading.Event()
    for _ in range(_LOOKS - 1):
        if not pids:
            return
        pause.wait(_BETWEEN)
        pids &= holders(path + "-shm", WRITER)
    for pid in sorted(pids):
        what = f"{process(pid)} holds the writer's lock and has not let go of it for {_LOOKS * _BETWEEN:g} s"
        remedy = "look at what it does"
        if stopped(pid):
            what += "; it is stopped (SIGSTOP, Ctrl-Z, a debugger)"
            remedy = f"wake it up (kill -CONT {pid}) or end it"
        yield Finding(Level.WARNING, "lock", what, f"{remedy}: nobody else can write meanwhile")


# -- what it holds -----------------------------------------------------------------------------------------------------


def _inside(path: str, clock: Clock, retention: Retention, *, full: bool) -> tuple[list[Finding], bool]:
    findings: list[Finding] = []
    try:
        with closing(connect(path)) as connection:
            findings.append(_schema(connection, path))
            current = findings[-1].level is Level.OK
            findings += _integrity(connection, path, full=full)
            findings += _log(path)
            if current:
                findings += _upkeep(connection, clock.now(), retention)
            if current and full:
                findings += _consistency(connection)
    except sqlite3.Error as error:
        return [*findings, _unreadable(error, path)], False
    return findings, current


def _unreadable(error: sqlite3.Error, path: str) -> Finding:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if faults.is_busy(error):
        pids = holders(path, WHOLE) | holders(path + "-shm", WHOLE)
        who = ", ".join(map(process, sorted(pids))) or "another program"
        return Finding(Level.ERROR, "lock", f"{path} is locked by {who}", "end its transaction, or end it")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return Finding(Level.ERROR, "integrity", f"{path} is no intact SQLite database ({error})", _RESTORE)
    remedy = "check the permissions of the file, of its -wal and -shm, and of the folder"
    return Finding(Level.ERROR, "file", f"{path} cannot be read ({error})", remedy)


_RESTORE = "stop the workers, keep the file with its -wal, and restore a backup; or choose another file"


def _schema(connection: sqlite3.Connection, path: str) -> Finding:
    """OK only if the jobs can be read."""
    try:
        found = schema.version(connection)
    except (TypeError, ValueError):
        return Finding(Level.ERROR, "schema", f"{path} does not tell the version of its schema", _RESTORE)
    if found > schema.VERSION:
        what = f"{path} has schema version {found}, this Mouso knows up to {schema.VERSION}"
        return Finding(Level.ERROR, "schema", what, "upgrade Mouso here, or use another file")
    if found == schema.VERSION:
        return Finding(Level.OK, "schema", f"schema version {found}, as this Mouso has it")
    if found:
        what = f"{path} has schema version {found}, this Mouso makes it {schema.VERSION} when it opens it"
        return Finding(Level.INFO, "schema", what, "stop the older workers first, then run mouso migrate")
    if tables := connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        what = f"{path} is a database of something else: it has {tables:,} tables and indexes, and none of Mouso's"
        return Finding(Level.WARNING, "schema", what, "check the broker's URL; the first worker or job adds its tables")
    return Finding(Level.INFO, "schema", f"{path} is empty", "start a worker or enqueue a job, which makes it a store")


def _integrity(connection: sqlite3.Connection, path: str, *, full: bool) -> Facts:
    """What SQLite says of the pages and rows. On a large file it is stopped after a while, unless all is asked for."""
    started = SYSTEM.monotonic()
    late = threading.Timer(QUICK, connection.interrupt)
    if not full:
        late.start()
    try:
        lines = [text for (text,) in connection.execute(f"PRAGMA {'integrity' if full else 'quick'}_check(5)")]
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        lines = []
    finally:
        late.cancel()
        if late.ident is not None:
            late.join()
    if lines and lines != ["ok"]:
        yield Finding(Level.ERROR, "integrity", f"{path} is damaged: {'; '.join(lines)}", _RESTORE)
    elif not full and SYSTEM.monotonic() - started >= QUICK:
        what = f"no damage was found within {QUICK:g} s, and there is more to look at"
        yield Finding(Level.INFO, "integrity", what, "look at all of it with --full")
    else:
        yield Finding(Level.OK, "integrity", "every page and row is intact" if full else "the pages are intact")


def _log(path: str) -> Facts:
    try:
        length = os.stat(path + "-wal").st_size
    except OSError:
        length = 0
    if length > _LONG_LOG:
        readers = ", ".join(map(process, sorted(holders(path + "-shm", READERS))))
        what = f"the log {path}-wal has grown to {size(length)}" + (f"; it is read by {readers}" if readers else "")
        remedy = "end what reads for long, such as a backup or a shell; a worker then moves the log into the file"
        yield Finding(Level.WARNING, "log", what, remedy)
    else:
        yield Finding(Level.OK, "log", f"the log has {size(length)}")


def _upkeep(connection: sqlite3.Connection, now: int, retention: Retention) -> Facts:
    """What any worker does in passing, and must have done."""

    def count(sql: str, *values: object) -> int:
        return int(connection.execute(f"SELECT count(*) FROM ({sql} LIMIT 100000)", values).fetchone()[0])

    waits = "SELECT 1 FROM mouso_live WHERE state <> 'running' AND"
    kept = (
        "SELECT 1 FROM (SELECT coalesce(keep_until, finished_at + iif(state = 'dead', ?, ?)) AS until"
        " FROM mouso_history ORDER BY seq LIMIT ?) WHERE until <= ?"
    )
    late = {
        "jobs past their expiry that are not marked as expired": count(f"{waits} expires_at <= ?", now - _LATE),
        "jobs that are due and not made available": count(f"{waits} due <= ?", now - _LATE),
        f"jobs kept for hours beyond their retention, of the {_SAMPLE:,} eldest": count(
            kept, retention.dead, retention.finished, _SAMPLE, now - _UNPRUNED
        ),
    }
    for what, number in late.items():
        if number:
            remedy = "start a worker, which does that in passing; if one is there, look at its log"
            yield Finding(Level.WARNING, "upkeep", f"{what}: {number:,}", remedy)
    if not any(late.values()):
        yield Finding(Level.OK, "upkeep", "due, expired and old jobs are dealt with")


_CONSISTENT: dict[str, str] = {
    "jobs in no state": "SELECT 1 FROM mouso_jobs j WHERE id <> ''"
    " AND NOT EXISTS (SELECT 1 FROM mouso_live l WHERE l.seq = j.seq)"
    " AND NOT EXISTS (SELECT 1 FROM mouso_history h WHERE h.seq = j.seq)",
    "jobs that are live and final at once": "SELECT 1 FROM mouso_live JOIN mouso_history USING (seq)",
    "states of no job": "SELECT 1 FROM (SELECT seq FROM mouso_live UNION ALL SELECT seq FROM mouso_history)"
    " WHERE seq NOT IN (SELECT seq FROM mouso_jobs)",
    "jobs in a state that Mouso does not know": "SELECT 1 FROM mouso_live"
    f" WHERE state NOT IN ({rows.KNOWN_LIVE})"
    f" UNION ALL SELECT 1 FROM mouso_history WHERE state NOT IN ({rows.KNOWN_FINAL})",
    "unique scopes that Mouso does not know": "SELECT 1 FROM mouso_jobs"
    " WHERE id <> '' AND unique_scope NOT IN ('queued', 'live', 'period')",
    "workers whose description cannot be read": "SELECT 1 FROM mouso_workers WHERE NOT json_valid(info)",
    "running jobs of no worker": "SELECT 1 FROM mouso_live WHERE state = 'running'"
    " AND (worker IS NULL OR worker NOT IN (SELECT n FROM mouso_workers))",
    "wrong counts of finished jobs": "SELECT 1 FROM (SELECT queue, state, n FROM mouso_tallies"
    " UNION ALL SELECT queue, state, -count(*) FROM mouso_history GROUP BY queue, state)"
    " GROUP BY queue, state HAVING sum(n) <> 0",
}


def _consistency(connection: sqlite3.Connection) -> Facts:
    """What holds after each of Mouso's transactions, and what another program may have broken."""
    wrong = 0
    for what, sql in _CONSISTENT.items():
        (number,) = connection.execute(f"SELECT count(*) FROM ({sql})").fetchone()
        if number:
            wrong += 1
            remedy = "find the program that writes to Mouso's tables; restore a backup if jobs are missing"
            yield Finding(Level.ERROR, "consistency", f"{what}: {number:,}", remedy)
    if not wrong:
        yield Finding(Level.OK, "consistency", "jobs, states and counts fit together")
