"""What operators and waiting callers ask of the store."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence

from mouso.brokers.base import CancelResult, DeleteResult, JobFilter, JobUpdate, QueueInfo, RetryResult
from mouso.brokers.sqlite import rows
from mouso.brokers.sqlite.producing import holder
from mouso.job import FINAL, LIVE, JobState, UniqueScope

_AVAILABLE = """
SELECT a.queue, a.n, j.enqueued_at FROM (
    SELECT queue, count(*) AS n, min(seq) AS seq FROM mouso_live INDEXED BY mouso_live_available
    WHERE state = 'available' GROUP BY queue
) a JOIN mouso_jobs j USING (seq)
"""
_PARKED = """
SELECT l.queue, min(j.enqueued_at) FROM mouso_parked JOIN mouso_live l USING (seq) JOIN mouso_jobs j USING (seq)
WHERE l.state = 'parked' GROUP BY l.queue
"""
_NOT_AVAILABLE = "SELECT queue, state, count(*) FROM mouso_live NOT INDEXED WHERE state <> 'available' GROUP BY 1, 2"
_STRAY = [
    ("mouso_live t", f"t.state <> 'available' AND t.state NOT IN ({rows.KNOWN_LIVE})"),
    ("mouso_history t", f"t.state <> 'completed' AND t.state NOT IN ({rows.KNOWN_FINAL})"),
]
"""Where jobs are that ``rows.state_of`` takes for dead."""
_INDEXES = {
    JobState.AVAILABLE: ("mouso_live_available", "state = 'available'"),
    JobState.RUNNING: ("mouso_live_running", "state = 'running'"),
    JobState.SCHEDULED: ("mouso_live_due", "due IS NOT NULL"),
    JobState.RETRYABLE: ("mouso_live_due", "due IS NOT NULL"),
}
_FEW = 5000
_MAKE_AVAILABLE = """
UPDATE mouso_live SET state = 'available', due = NULL, worker = NULL
WHERE seq = ? AND state NOT IN ('pending', 'available', 'parked', 'running')
"""


def cancel(tx: sqlite3.Connection, ids: Sequence[str], now: int) -> list[CancelResult]:
    """Cancels waiting jobs, asks running ones to stop."""
    tallies: rows.Tallies = Counter()
    results = [_cancel_one(tx, id_, now, tallies) for id_ in ids]
    rows.store_tallies(tx, tallies)
    return results


def _cancel_one(tx: sqlite3.Connection, id_: str, now: int, tallies: rows.Tallies) -> CancelResult:
    seq, state = _locate(tx, id_)
    if seq is None:
        return CancelResult.UNKNOWN
    if state.final:
        return CancelResult.DONE
    if state is JobState.RUNNING:
        tx.execute("UPDATE mouso_live SET cancel = 1 WHERE seq = ?", (seq,))
        return CancelResult.REQUESTED
    rows.finish(tx, seq, JobState.CANCELLED, now, tallies, reason="cancelled")
    return CancelResult.CANCELLED


def _locate(tx: sqlite3.Connection, id_: str) -> tuple[int | None, JobState]:
    row = tx.execute(
        "SELECT j.seq, l.state, h.state FROM mouso_jobs j LEFT JOIN mouso_live l USING (seq)"
        " LEFT JOIN mouso_history h USING (seq) WHERE j.id = ? AND j.id <> ''",
        (id_,),
    ).fetchone()
    return (row[0], rows.state_of(row[1], row[2])) if row else (None, JobState.DEAD)


def retry(tx: sqlite3.Connection, ids: Sequence[str], payload: bytes | None, now: int) -> list[RetryResult]:
    """Makes final jobs available again and waiting ones due."""
    tallies: rows.Tallies = Counter()
    results = []
    for id_ in ids:
        seq, state = _locate(tx, id_)
        result = RetryResult.UNKNOWN if seq is None else _retry_one(tx, seq, state, now, tallies)
        if result is RetryResult.RETRIED and payload is not None:
            tx.execute("UPDATE mouso_jobs SET payload = ? WHERE seq = ?", (payload, seq))
        results.append(result)
    rows.store_tallies(tx, tallies)
    return results


def _retry_one(tx: sqlite3.Connection, seq: int, state: JobState, now: int, tallies: rows.Tallies) -> RetryResult:
    if tx.execute(_MAKE_AVAILABLE, (seq,)).rowcount:
        return RetryResult.RETRIED
    if state is JobState.COMPLETED:
        return RetryResult.DONE
    if not state.final:
        return RetryResult.LIVE
    id_, key, scope = tx.execute("SELECT id, unique_key, unique_scope FROM mouso_jobs WHERE seq = ?", (seq,)).fetchone()
    if key is not None and holder(tx, key, now, tallies) not in (None, id_):
        return RetryResult.CONFLICT
    if scope == UniqueScope.PERIOD:
        key = None
    tx.execute(
        "INSERT INTO mouso_live (seq, state, queue, priority, claims, releases, unique_key, unique_queued, progress)"
        " SELECT seq, 'available', j.queue, j.priority, coalesce(h.claims, 0), coalesce(h.releases, 0), ?, ?,"
        " h.progress"
        " FROM mouso_jobs j LEFT JOIN mouso_history h USING (seq) WHERE seq = ?",
        (key, int(scope == UniqueScope.QUEUED), seq),
    )
    for counted in tx.execute("DELETE FROM mouso_history WHERE seq = ? RETURNING queue, state", (seq,)).fetchall():
        tallies[counted] -= 1
    return RetryResult.RETRIED


def delete(tx: sqlite3.Connection, ids: Sequence[str]) -> list[DeleteResult]:
    """Removes jobs that do not run."""
    tallies: rows.Tallies = Counter()
    results = []
    for id_ in ids:
        seq, state = _locate(tx, id_)
        if seq is None:
            results.append(DeleteResult.UNKNOWN)
        elif state is JobState.RUNNING:
            results.append(DeleteResult.RUNNING)
        else:
            for counted in tx.execute("SELECT queue, state FROM mouso_history WHERE seq = ?", (seq,)).fetchall():
                tallies[counted] -= 1
            rows.forget(tx, [seq], free_keys=True)
            results.append(DeleteResult.DELETED)
    rows.store_tallies(tx, tallies)
    return results


def pause(tx: sqlite3.Connection, queue: str, until: int | None) -> None:
    """Pauses a queue, which need not exist."""
    tx.execute(
        "INSERT INTO mouso_queues (name, paused, paused_until) VALUES (?, 1, ?)"
        " ON CONFLICT DO UPDATE SET paused = 1, paused_until = excluded.paused_until",
        (queue, until),
    )


def resume(tx: sqlite3.Connection, queue: str) -> None:
    """Ends a pause."""
    tx.execute("UPDATE mouso_queues SET paused = 0, paused_until = NULL WHERE name = ?", (queue,))


def purge(tx: sqlite3.Connection, queue: str, limit: int) -> int:
    """Removes waiting jobs."""
    seqs = tx.execute(
        "SELECT seq FROM mouso_live WHERE queue = ? AND state <> 'running' LIMIT ?", (queue, limit)
    ).fetchall()
    rows.forget(tx, [seq for (seq,) in seqs], free_keys=True)
    return len(seqs)


def find(tx: sqlite3.Connection, where: JobFilter) -> list[int]:
    """The seqs of the jobs to list, the last enqueued first."""
    after = None
    if where.after is not None:
        row = tx.execute("SELECT seq FROM mouso_jobs WHERE id = ?", (where.after,)).fetchone()
        if row is None:
            return []
        after = row[0]
    states = frozenset(JobState) if where.states is None else where.states
    live: set[str] = {s.value for s in states & LIVE}
    if JobState.AVAILABLE in states:
        live.add(rows.PARKED)
    if where.parked is not None:
        live &= {rows.PARKED} if where.parked else live - {rows.PARKED}
    history = {s.value for s in states & FINAL} if not where.parked else set()
    walks = [_walk(tx, state) for state in sorted(live)] + [
        ("mouso_history t", f"t.state = '{s}'") for s in sorted(history)
    ]
    if JobState.DEAD in history:
        walks += _STRAY
    if len(live) + len(history) == len(JobState) + 1:
        walks = [("mouso_live t", "true"), ("mouso_history t", "true")]
    found: list[int] = []
    for source, condition in walks:
        sql = f"SELECT t.seq FROM {source}"
        values: list[object] = []
        if where.task is not None:
            sql += " JOIN mouso_jobs j USING (seq)"
        sql += f" WHERE {condition}"
        for clause, value in (
            (" AND t.seq < ?", after),
            (" AND t.queue = ?", where.queue),
            (" AND j.task = ?", where.task),
        ):
            if value is not None:
                sql += clause
                values.append(value)
        found += [seq for (seq,) in tx.execute(sql + " ORDER BY t.seq DESC LIMIT ?", (*values, where.limit))]
    return sorted(found, reverse=True)[: where.limit]


def _walk(tx: sqlite3.Connection, state: str) -> tuple[str, str]:
    """Where the live jobs of a state are: if they are few in its index, else in the table, which is in order of seq."""
    if state == rows.PARKED:
        return "mouso_live t", "t.seq IN (SELECT seq FROM mouso_parked) AND t.state = 'parked'"
    if state not in _INDEXES:
        return "mouso_live t", f"t.state = '{state}'"
    index, condition = _INDEXES[JobState(state)]
    few = f"SELECT 1 FROM mouso_live INDEXED BY {index} WHERE {condition} LIMIT {_FEW}"
    (n,) = tx.execute(f"SELECT count(*) FROM ({few})").fetchone()
    how = f"INDEXED BY {index}" if n < _FEW else "NOT INDEXED"
    return f"mouso_live t {how}", f"t.{condition} AND t.state = '{state}'"


def queues(tx: sqlite3.Connection, now: int) -> list[QueueInfo]:
    """Counts by queue and state."""
    counts: dict[str, Counter[JobState]] = {}
    pauses: dict[str, tuple[bool, int | None]] = {}
    for name, paused, until in tx.execute("SELECT name, paused, paused_until FROM mouso_queues"):
        counts[name] = Counter()
        pauses[name] = (bool(paused) and (until is None or until > now), until)
    oldest: dict[str, int] = {}
    for queue, n, at in tx.execute(_AVAILABLE):
        counts.setdefault(queue, Counter())[JobState.AVAILABLE] += n
        oldest[queue] = max(now - at, 0)
    for queue, at in tx.execute(_PARKED):
        oldest[queue] = max(now - at, oldest.get(queue, 0))
    for queue, state, n in tx.execute(_NOT_AVAILABLE):
        counts.setdefault(queue, Counter())[rows.state_of(state, None)] += n
    for queue, state, n in tx.execute("SELECT queue, state, n FROM mouso_tallies WHERE n > 0"):
        counts.setdefault(queue, Counter())[rows.state_of(None, state)] += n
    infos = []
    for name in sorted(counts):
        paused, until = pauses.get(name, (False, None))
        infos.append(
            QueueInfo(
                name=name,
                counts=dict(counts[name]),
                paused=paused,
                paused_until=until if paused else None,
                oldest=oldest.get(name),
            )
        )
    return infos


def snapshot(tx: sqlite3.Connection, ids: Sequence[str]) -> dict[str, JobUpdate]:
    """What waiting callers see of jobs; ids that are unknown are left out."""
    found = {}
    for start in range(0, len(ids), rows.MOST_IDS):
        chunk = ids[start : start + rows.MOST_IDS]
        for id_, live, history, attempts, progress in rows.fetch(
            tx,
            "SELECT j.id, l.state, h.state, coalesce(l.attempts, h.attempts, 0), coalesce(l.progress, h.progress)"
            " FROM mouso_jobs j LEFT JOIN mouso_live l USING (seq) LEFT JOIN mouso_history h USING (seq)"
            f" WHERE j.id IN ({rows.marks(chunk)}) AND j.id <> ''",
            chunk,
        ):
            found[id_] = JobUpdate(id_, rows.state_of(live, history), attempts, rows.decode_progress(progress))
    return found
