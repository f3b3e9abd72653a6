"""Storing jobs."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence

from mouso.brokers.base import Enqueued
from mouso.brokers.sqlite import rows
from mouso.job import Job, JobState, UniqueScope

_JOB = (
    "INSERT OR IGNORE INTO mouso_jobs (seq, id, task, queue, priority, enqueued_at, codec, options, unique_key,"
    " unique_scope, unique_period, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_LIVE = (
    "INSERT INTO mouso_live (seq, state, queue, priority, due, expires_at, unique_key, unique_queued)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_LIVE_AT_ONCE = (
    "INSERT INTO mouso_live (seq, state, queue, priority)"
    " SELECT seq, 'available', queue, priority FROM mouso_jobs WHERE seq > ?"
)


def insert(
    tx: sqlite3.Connection, jobs: Sequence[Job], now: int, known_queues: set[str]
) -> tuple[list[Enqueued], bool]:
    """Stores jobs in the open transaction; returns what became of them, and whether others expired for them.

    Args:
        known_queues: Queue names known to be stored.
    """
    tallies: rows.Tallies = Counter()
    if len(jobs) > 1 and not any(job.unique for job in jobs) and _insert_fresh(tx, jobs, now):
        enqueued = [Enqueued(job.id, True) for job in jobs]
    else:
        enqueued = [_insert_one(tx, job, now, tallies) for job in jobs]
    for queue in {job.queue for job in jobs} - known_queues:
        if any(stored.created for job, stored in zip(jobs, enqueued, strict=True) if job.queue == queue):
            tx.execute("INSERT OR IGNORE INTO mouso_queues (name) VALUES (?)", (queue,))
    if tallies:
        rows.store_tallies(tx, tallies)
    return enqueued, bool(tallies)


def _insert_fresh(tx: sqlite3.Connection, jobs: Sequence[Job], now: int) -> bool:
    """Stores jobs of which none is there yet, or returns False and stores nothing."""
    tx.execute("SAVEPOINT fresh")
    (last,) = tx.execute("SELECT max(seq) FROM mouso_jobs").fetchone()
    given = [_job_row(job, seq, now) for seq, job in enumerate(jobs, last + 1)]
    if tx.executemany(_JOB, given).rowcount == len(jobs):
        if any(job.delay or job.due or job.ttl is not None or job.expires_at for job in jobs):
            tx.executemany(_LIVE, [_live_row(job, seq, now) for seq, job in enumerate(jobs, last + 1)])
        else:
            tx.execute(_LIVE_AT_ONCE, (last,))
        tx.execute("RELEASE fresh")
        return True
    tx.execute("ROLLBACK TO fresh")
    tx.execute("RELEASE fresh")
    return False


def _insert_one(tx: sqlite3.Connection, job: Job, now: int, tallies: rows.Tallies) -> Enqueued:
    if job.unique and not tx.execute("SELECT 1 FROM mouso_jobs WHERE id = ?", (job.id,)).fetchone():
        held_by = holder(tx, job.unique, now, tallies)
        if held_by:
            return Enqueued(held_by, False)
        if job.unique_scope is UniqueScope.PERIOD:
            tx.execute(
                "INSERT OR REPLACE INTO mouso_unique_periods (key, id, until) VALUES (?, ?, ?)",
                (job.unique, job.id, now + job.unique_period),
            )
    stored = tx.execute(_JOB, _job_row(job, None, now))
    if stored.rowcount == 0:
        return Enqueued(job.id, False)
    tx.execute(_LIVE, _live_row(job, stored.lastrowid, now))
    return Enqueued(job.id, True)


def holder(tx: sqlite3.Connection, key: str, now: int, tallies: rows.Tallies) -> str | None:
    """The id of the job that holds a unique key now; one that waits past its expiry expires, and holds it no more."""
    found = tx.execute(
        "SELECT j.id, l.seq, l.expires_at <= ? AND l.state <> 'running' FROM mouso_live l JOIN mouso_jobs j USING (seq)"
        " WHERE l.unique_key = ? UNION ALL SELECT id, NULL, 0 FROM mouso_unique_periods WHERE key = ? AND until > ?",
        (now, key, key, now),
    ).fetchall()
    for id_, seq, lapsed in found:
        if not lapsed:
            return str(id_)
        rows.finish(tx, seq, JobState.EXPIRED, now, tallies, reason="expired")
    return None


def _job_row(job: Job, seq: int | None, now: int) -> tuple[object, ...]:
    return (
        seq, job.id, job.task, job.queue, job.priority, now, job.codec, job.options, job.unique,
        job.unique_scope.value if job.unique else None, job.unique_period, job.payload,
    )  # fmt: skip


def _live_row(job: Job, seq: int | None, now: int) -> tuple[object, ...]:
    due = now + job.delay if job.delay is not None else job.due
    waits = due is not None and due > now
    expires_at = now + job.ttl if job.ttl is not None else job.expires_at
    key = job.unique if job.unique_scope is not UniqueScope.PERIOD else None
    return (
        seq, "scheduled" if waits else "available", job.queue, job.priority, due if waits else None, expires_at, key,
        int(key is not None and job.unique_scope is UniqueScope.QUEUED),
    )  # fmt: skip
