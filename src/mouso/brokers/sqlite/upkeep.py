"""Small idempotent steps that any worker takes now and then."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence

from mouso.brokers.base import Retention
from mouso.brokers.sqlite import rows
from mouso.job import JobState

_TOMBSTONE_MS = 3_600_000
_SWEEP = 5000


def work_waits(tx: sqlite3.Connection, now: int) -> bool:
    """Whether ``promote`` has anything to do; a look that takes no write lock."""
    return (
        tx.execute(
            "SELECT 1 FROM mouso_live WHERE due IS NOT NULL AND due <= ? UNION ALL SELECT 1 FROM mouso_live"
            " WHERE expires_at IS NOT NULL AND expires_at <= ? AND state <> 'running' LIMIT 1",
            (now, now),
        ).fetchone()
        is not None
    )


def promote(tx: sqlite3.Connection, limit: int, now: int) -> int:
    """Expires, then makes due."""
    tallies: rows.Tallies = Counter()
    expired = tx.execute(
        "SELECT seq FROM mouso_live WHERE expires_at IS NOT NULL AND expires_at <= ? AND state <> 'running' LIMIT ?",
        (now, limit),
    ).fetchall()
    for (seq,) in expired:
        rows.finish(tx, seq, JobState.EXPIRED, now, tallies, reason="expired")
    rows.store_tallies(tx, tallies)
    due = tx.execute(
        "UPDATE mouso_live SET state = 'available', due = NULL WHERE seq IN"
        " (SELECT seq FROM mouso_live WHERE due IS NOT NULL AND due <= ? ORDER BY due LIMIT ?)",
        (now, limit - len(expired)),
    ).rowcount
    return len(expired) + due


def expired_workers(tx: sqlite3.Connection, boot: str, steady: int) -> list[tuple[int, str]]:
    """Row numbers and ids of workers whose lease has ended, or that ran before this host's last boot."""
    return tx.execute(
        "SELECT n, id FROM mouso_workers WHERE reaped_at IS NULL AND (lease_until <= ? OR boot <> ?) ORDER BY n",
        (steady, boot),
    ).fetchall()


def reap(tx: sqlite3.Connection, limit: int, boot: str, now: int, steady: int) -> list[str]:
    """Gives back the claims of expired workers and marks the workers reaped."""
    tallies: rows.Tallies = Counter()
    reaped = []
    for number, worker in expired_workers(tx, boot, steady):
        limit -= rows.give_back(tx, number, limit, now, tallies)
        if tx.execute("SELECT 1 FROM mouso_live WHERE state = 'running' AND worker = ?", (number,)).fetchone():
            break
        tx.execute("UPDATE mouso_workers SET reaped_at = ?, rejoins = 1 WHERE n = ?", (steady, number))
        reaped.append(worker)
    rows.store_tallies(tx, tallies)
    return reaped


def reconcile(tx: sqlite3.Connection, worker: str, held: Sequence[tuple[int | str, int]], now: int) -> list[int | str]:
    """Gives back the worker's running claims that it does not know of; returns the keys that it holds in vain."""
    running = set(
        tx.execute(
            "SELECT seq, claims FROM mouso_live WHERE state = 'running' AND worker ="
            " (SELECT n FROM mouso_workers WHERE id = ?)",
            (worker,),
        )
    )
    tallies: rows.Tallies = Counter()
    for seq, _ in running.difference(held):
        rows.give_back_one(tx, seq, now, tallies)
    rows.store_tallies(tx, tallies)
    return [key for key, token in held if (key, token) not in running]


class Pruner:
    """Deletes what is past its retention. History is not indexed by age (that would cost every job a
    tree insert): each call sweeps a bounded stretch of it, oldest jobs first, and the next goes on there.
    """

    def __init__(self) -> None:
        self._swept = 0

    def prune(self, tx: sqlite3.Connection, limit: int, retention: Retention, boot: str, now: int, steady: int) -> int:
        """Deletes up to ``limit`` jobs, and forgotten keys and workers."""
        tx.execute(
            "DELETE FROM mouso_workers WHERE reaped_at IS NOT NULL AND (boot <> ? OR reaped_at < ?)",
            (boot, steady - _TOMBSTONE_MS),
        )
        tx.execute("DELETE FROM mouso_unique_periods WHERE until <= ?", (now,))
        kept = "SELECT seq, queue, state FROM mouso_history WHERE keep_until IS NOT NULL AND keep_until <= ? LIMIT ?"
        deleted = _delete(tx, tx.execute(kept, (now, limit)).fetchall())
        deleted += _delete(tx, self._sweep(tx, limit - deleted, now - retention.finished, now - retention.dead))
        for most, states in ((retention.max_dead, "= 'dead'"), (retention.max_finished, "<> 'dead'")):
            sql = f"SELECT coalesce(sum(n), 0) FROM mouso_tallies WHERE state {states}"
            excess = min(tx.execute(sql).fetchone()[0] - most, limit - deleted)
            if excess > 0:
                sql = f"SELECT seq, queue, state FROM mouso_history WHERE state {states} ORDER BY seq LIMIT ?"
                deleted += _delete(tx, tx.execute(sql, (excess,)).fetchall())
        return deleted

    def _sweep(
        self, tx: sqlite3.Connection, limit: int, finished_before: int, dead_before: int
    ) -> list[tuple[int, str, str]]:
        if limit <= 0:
            return []
        stretch = tx.execute(
            "SELECT seq, queue, state, finished_at FROM mouso_history WHERE seq > ? AND keep_until IS NULL"
            " ORDER BY seq LIMIT ?",
            (self._swept, _SWEEP),
        ).fetchall()
        old = [
            (seq, queue, state)
            for seq, queue, state, at in stretch
            if at <= (dead_before if state == "dead" else finished_before)
        ]
        whole = len(stretch) < _SWEEP and len(old) <= limit
        self._swept = 0 if whole else (old[limit][0] - 1 if len(old) > limit else stretch[-1][0])
        return old[:limit]


def _delete(tx: sqlite3.Connection, found: list[tuple[int, str, str]]) -> int:
    rows.forget(tx, [seq for seq, _, _ in found])
    tallies: rows.Tallies = Counter()
    for _, queue, state in found:
        tallies[queue, state] -= 1
    rows.store_tallies(tx, tallies)
    return len(found)
