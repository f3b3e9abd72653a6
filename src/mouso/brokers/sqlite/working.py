"""What a worker does with the store: settle, claim, heartbeat, report."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec

from mouso.brokers.base import LEASE_MS, Command, Exchange, Update, Want, WorkerInfo
from mouso.brokers.sqlite import rows
from mouso.job import Charge, JobState, Lease, Outcome, Stack, check_transition, measures

log = logging.getLogger("mouso.brokers.sqlite")

# A statement takes a whole batch, as one JSON array or as rows of values: with one execution per job the interpreter's
# lock changes hands twice for each, and a batch takes 1.5 times as long.
_ROWS = 100
_REFUSED = (sqlite3.IntegrityError, sqlite3.DataError, OverflowError)
_COMPLETE = """
INSERT OR IGNORE INTO mouso_history (seq, state, queue, finished_at, run_seconds, worker, claims, attempts, crashes,
    releases, expires_at, keep_until, progress, result, started_at, cpu_seconds, peak_memory, pid)
SELECT seq, 'completed', queue, ?, o.column3, ?, claims, attempts, crashes, releases, expires_at, o.column4, progress,
    o.column5, o.column6, o.column7, o.column8, o.column9
FROM (VALUES {rows}) o CROSS JOIN mouso_live l ON l.seq = o.column1
WHERE l.claims = o.column2 AND l.state = 'running' AND l.worker = ?
"""
_ROW = "(?, ?, ?, ?, ?, ?, ?, ?, ?)"
_COMPLETE_ONE = _COMPLETE.format(rows=_ROW)
_COMPLETE_MANY = _COMPLETE.format(rows=", ".join([_ROW] * _ROWS))
_LEAVE = "DELETE FROM mouso_live WHERE seq IN (SELECT value FROM json_each(?)) AND state = 'running'"
_CLAIM = """
UPDATE mouso_live SET state = 'running', worker = ?, claims = claims + 1
WHERE seq IN (SELECT value FROM json_each(?))
"""
_AVAILABLE = (
    "SELECT l.seq, l.claims + 1, j.id, j.task, l.queue, j.payload, j.codec, l.attempts, l.crashes, l.releases,"
    " j.enqueued_at, l.expires_at - ?, j.options, l.priority, l.unique_queued"
    " FROM mouso_live l INDEXED BY mouso_live_available CROSS JOIN mouso_jobs j USING (seq)"
    " WHERE l.state = 'available' AND l.queue = ? AND (l.expires_at IS NULL OR l.expires_at > ?)"
)
_QUEUES_WITH_JOBS = """
WITH RECURSIVE q (name) AS (
    SELECT min(queue) FROM mouso_live WHERE state = 'available'
    UNION ALL
    SELECT (SELECT min(queue) FROM mouso_live WHERE state = 'available' AND queue > q.name)
    FROM q WHERE q.name IS NOT NULL
)
SELECT name FROM q WHERE name IS NOT NULL
"""
_ASK = f"""
INSERT INTO mouso_runs (seq, claims, attempt, asked) SELECT seq, claims, min(attempts, {rows.MOST - 1}) + 1, 1
FROM mouso_jobs JOIN mouso_live USING (seq) WHERE id = ? AND state = 'running'
ON CONFLICT DO UPDATE SET asked = 1, stack = NULL
"""
_ASKED = """
SELECT r.seq, r.claims FROM mouso_runs r INDEXED BY mouso_runs_asked CROSS JOIN mouso_live l USING (seq)
WHERE r.asked = 1 AND l.claims = r.claims AND l.state = 'running' AND l.worker = ?
"""
_TAKEN = "UPDATE mouso_runs SET asked = 0 WHERE seq = ? AND claims = ?"
_UNPARK_AT_ONCE = 50_000


def settle(tx: sqlite3.Connection, worker: str, number: int, outcomes: Sequence[Outcome], now: int) -> list[int | str]:
    """Applies outcomes of a worker's claims and returns the keys of those that were fenced."""
    completed = [o for o in outcomes if o.state is JobState.COMPLETED]
    others = [o for o in outcomes if o.state is not JobState.COMPLETED]
    tallies: rows.Tallies = Counter()
    if completed and not _complete_all(tx, worker, number, completed, now, tallies):
        others = list(outcomes)
    fenced = [o.key for o in others if not _settle_alone(tx, worker, number, o, now, tallies)]
    rows.store_tallies(tx, tallies)
    return fenced


def _complete_all(
    tx: sqlite3.Connection, worker: str, number: int, outcomes: Sequence[Outcome], now: int, tallies: rows.Tallies
) -> bool:
    """Completes jobs in two statements, or returns False and changes nothing if that does not work for each of them."""
    tx.execute("SAVEPOINT complete")
    done = 0
    values = [
        (
            o.key, o.token, o.run_seconds, None if o.keep is None else now + o.keep, o.result, o.started_at,
            o.cpu_seconds, o.peak_memory, o.pid,
        )
        for o in outcomes
    ]  # fmt: skip
    left = 0
    whole_rows = len(values) - len(values) % _ROWS
    try:
        for start in range(0, whole_rows, _ROWS):
            batch = chain.from_iterable(values[start : start + _ROWS])
            done += tx.execute(_COMPLETE_MANY, (now, worker, *batch, number)).rowcount
        done += tx.executemany(_COMPLETE_ONE, [(now, worker, *row, number) for row in values[whole_rows:]]).rowcount
        for logged in [o for o in outcomes if o.log is not None]:
            rows.end_run(tx, worker, logged)
        left = tx.execute(_LEAVE, (rows.encode_text([o.key for o in outcomes]),)).rowcount
    except _REFUSED:
        done = -1
    whole = done == left == len(outcomes)
    if whole:
        tallies.update((o.queue, "completed") for o in outcomes)
    else:
        tx.execute("ROLLBACK TO complete")
    tx.execute("RELEASE complete")
    return whole


def _settle_alone(
    tx: sqlite3.Connection, worker: str, number: int, outcome: Outcome, now: int, tallies: rows.Tallies
) -> bool:
    """Applies one outcome; one that the store cannot take, such as a counter at its limit, stops nobody else."""
    tx.execute("SAVEPOINT alone")
    try:
        return _settle_one(tx, worker, number, outcome, now, tallies)
    except _REFUSED as error:
        tx.execute("ROLLBACK TO alone")
        log.error("the outcome %s of job %s cannot be stored, it is dead: %s", outcome.state, outcome.id, error)
        rows.finish(tx, int(outcome.key), JobState.DEAD, now, tallies, reason="bad_outcome", worker=worker)
        return True
    finally:
        tx.execute("RELEASE alone")


def _settle_one(
    tx: sqlite3.Connection, worker: str, number: int, outcome: Outcome, now: int, tallies: rows.Tallies
) -> bool:
    row = tx.execute(
        "SELECT cancel FROM mouso_live WHERE seq = ? AND claims = ? AND state = 'running' AND worker = ?",
        (outcome.key, outcome.token, number),
    ).fetchone()
    if row is None:
        return False
    check_transition(JobState.RUNNING, outcome.state)
    seq = int(outcome.key)
    rows.end_run(tx, worker, outcome)
    if outcome.error is not None:
        error = msgspec.structs.replace(outcome.error, at=now, worker=worker, token=outcome.token, **measures(outcome))
        tx.execute(
            "INSERT INTO mouso_errors (seq, claims, error) VALUES (?, ?, ?)",
            (seq, outcome.token, rows.encode_text(error)),
        )
    if outcome.charge is not Charge.NONE:
        column = outcome.charge.value
        tx.execute(f"UPDATE mouso_live SET {column} = {column} + 1 WHERE seq = ?", (seq,))
    state, reason = outcome.state, outcome.reason
    if row[0] and state not in (JobState.COMPLETED, JobState.CANCELLED):
        state, reason = JobState.CANCELLED, "cancelled"
    if state.final:
        rows.finish(tx, seq, state, now, tallies, reason=reason, worker=worker, outcome=outcome)
    else:
        due = None if state is JobState.AVAILABLE else now + outcome.delay
        tx.execute("UPDATE mouso_live SET state = ?, due = ?, worker = NULL WHERE seq = ?", (state, due, seq))
    return True


class Claimer:
    """Claims jobs queue by queue; remembers only whose turn it is when there are more queues than slots."""

    def __init__(self) -> None:
        self._turn = ""

    def claim(self, tx: sqlite3.Connection, number: int, want: Want, now: int) -> Exchange:
        """Claims up to ``want.limit`` jobs for the worker ``number``."""
        exchange = Exchange(leases=[])
        if want.limit > 0:
            paused = {
                name
                for (name,) in tx.execute(
                    "SELECT name FROM mouso_queues WHERE paused = 1 AND (paused_until IS NULL OR paused_until > ?)",
                    (now,),
                )
            }
            shares = [(queue, share) for queue, share in self._shares(tx, want) if queue not in paused]
            short = self._first_round(tx, number, want, shares, now, exchange)
            for queue in short:
                self._from_queue(tx, number, want, queue, want.limit - len(exchange.leases), now, exchange)
        (due,) = tx.execute("SELECT min(due) FROM mouso_live WHERE due IS NOT NULL").fetchone()
        exchange.next_due = None if due is None else max(due - now, 0)
        return exchange

    def _shares(self, tx: sqlite3.Connection, want: Want) -> Sequence[tuple[str, int]]:
        if want.shares is not None:
            return want.shares
        names = [name for (name,) in rows.fetch(tx, _QUEUES_WITH_JOBS, ())]
        later = [name for name in names if name > self._turn]
        names = later + names[: len(names) - len(later)]
        if not names:
            return ()
        share = -(-want.limit // len(names))
        self._turn = names[min(want.limit, len(names)) - 1]
        return [(name, share) for name in names]

    def _first_round(
        self,
        tx: sqlite3.Connection,
        number: int,
        want: Want,
        shares: Sequence[tuple[str, int]],
        now: int,
        into: Exchange,
    ) -> list[str]:
        """Gives every queue its share; returns those that filled it and so may have more."""
        more = []
        for queue, share in shares:
            limit = min(share, want.limit - len(into.leases))
            if limit <= 0 or self._from_queue(tx, number, want, queue, limit, now, into) == limit:
                more.append(queue)
        return more

    def _from_queue(
        self,
        tx: sqlite3.Connection,
        number: int,
        want: Want,
        queue: str,
        limit: int,
        now: int,
        into: Exchange,
    ) -> int:
        """Claims up to ``limit`` jobs of one queue, parking or stepping over those whose task is unknown here."""
        taken = 0
        elsewhere: set[str] = set()
        while taken < limit:
            sql = _AVAILABLE
            if elsewhere:
                sql += f" AND j.task NOT IN ({rows.marks(list(elsewhere))})"
            values = (now, queue, now, *elsewhere, limit - taken)
            found = rows.fetch(tx, sql + " ORDER BY l.priority DESC, l.seq LIMIT ?", values)
            known = found if want.tasks is None else [row for row in found if row[3] in want.tasks]
            try:
                tx.execute(_CLAIM, (number, rows.encode_text([row[0] for row in known])))
            except _REFUSED:
                known = [row for row in known if _claim_alone(tx, number, row, now)]
            queued = [(row[0],) for row in known if row[14]]
            if queued:
                tx.executemany("UPDATE mouso_live SET unique_key = NULL WHERE seq = ?", queued)
            into.leases += [Lease(*row[:14]) for row in known]
            taken += len(known)
            if len(known) == len(found):
                break
            unknown = [(row[3], row[0]) for row in found if want.tasks is not None and row[3] not in want.tasks]
            elsewhere |= self._park(tx, unknown, into)
        return taken

    def _park(self, tx: sqlite3.Connection, unknown: Sequence[tuple[str, int]], into: Exchange) -> set[str]:
        """Parks jobs (task, seq) that no live worker knows; returns the tasks that one does know."""
        known: set[str] = set()
        for worker in tx.execute("SELECT id, info FROM mouso_workers WHERE reaped_at IS NULL"):
            known.update(rows.read_worker(*worker).tasks)
        parked = [(task, seq) for task, seq in unknown if task not in known]
        tx.executemany("INSERT OR IGNORE INTO mouso_parked (task, seq) VALUES (?, ?)", parked)
        tx.executemany("UPDATE mouso_live SET state = 'parked' WHERE seq = ?", [(seq,) for _, seq in parked])
        into.parked = sorted({*into.parked, *(task for task, _ in parked)})
        return {task for task, _ in unknown} & known


def _claim_alone(tx: sqlite3.Connection, number: int, row: tuple[Any, ...], now: int) -> bool:
    """Claims one job, or makes it dead if that cannot be stored: its count of claims may be at the limit."""
    try:
        tx.execute(_CLAIM, (number, rows.encode_text([row[0]])))
    except _REFUSED as error:
        log.error("job %s cannot be claimed, it is dead: %s", row[2], error)
        tallies: rows.Tallies = Counter()
        rows.finish(tx, row[0], JobState.DEAD, now, tallies, reason="bad_payload")
        rows.store_tallies(tx, tallies)
        return False
    return True


def worker_number(tx: sqlite3.Connection, worker: str, boot: str, now: int, steady: int) -> int:
    """The row number of a worker, announced with the barest facts if it is not known or was reaped."""
    row = tx.execute("SELECT n FROM mouso_workers WHERE id = ? AND reaped_at IS NULL", (worker,)).fetchone()
    return int(row[0]) if row else _announce(tx, WorkerInfo(id=worker, name=worker, host="", pid=0), boot, now, steady)


def _announce(tx: sqlite3.Connection, worker: WorkerInfo, boot: str, now: int, steady: int) -> int:
    (number,) = tx.execute(
        "INSERT INTO mouso_workers (id, boot, lease_until, beat, info) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET boot = excluded.boot, lease_until = excluded.lease_until,"
        " beat = excluded.beat, info = excluded.info, reaped_at = NULL RETURNING n",
        (worker.id, boot, steady + LEASE_MS, now, rows.encode_text(worker)),
    ).fetchone()
    return int(number)


def heartbeat(tx: sqlite3.Connection, worker: WorkerInfo, boot: str, now: int, steady: int) -> list[Command]:
    """Renews the lease, gives parked jobs back to it, and collects what it is to be told."""
    number = _announce(tx, worker, boot, now, steady)
    rejoins = tx.execute("UPDATE mouso_workers SET rejoins = 0 WHERE n = ? AND rejoins = 1", (number,)).rowcount
    commands = [Command("rejoin")] if rejoins else []
    for seq, claims in tx.execute(
        "SELECT seq, claims FROM mouso_live WHERE state = 'running' AND worker = ? AND cancel = 1", (number,)
    ):
        commands.append(Command("cancel", seq, claims))
    for seq, claims in tx.execute(_ASKED, (number,)):
        commands.append(Command("stack", seq, claims))
    _unpark(tx, worker.tasks)
    return commands


def _unpark(tx: sqlite3.Connection, tasks: Sequence[str]) -> None:
    if tx.execute("SELECT 1 FROM mouso_parked LIMIT 1").fetchone() is None:
        return
    for task in tasks:
        seqs = tx.execute(
            "DELETE FROM mouso_parked WHERE task = ? AND seq IN"
            " (SELECT seq FROM mouso_parked WHERE task = ? LIMIT ?) RETURNING seq",
            (task, task, _UNPARK_AT_ONCE),
        ).fetchall()
        tx.executemany("UPDATE mouso_live SET state = 'available' WHERE seq = ? AND state = 'parked'", seqs)


def report(tx: sqlite3.Connection, worker: str, updates: Sequence[Update], now: int) -> list[int | str]:
    """Stores news of running claims and returns the keys of fenced updates."""
    fenced = []
    for update in updates:
        progress = None if update.progress is None else rows.encode_text(update.progress)
        changed = tx.execute(
            "UPDATE mouso_live SET progress = coalesce(?, progress) WHERE seq = ? AND claims = ? AND state = 'running'"
            " AND worker = (SELECT n FROM mouso_workers WHERE id = ?)",
            (progress, update.key, update.token, worker),
        ).rowcount
        if not changed:
            fenced.append(update.key)
            continue
        if update.log is not None:
            rows.note_run(tx, update.key, update.token, worker, log=update.log.decode())
        if update.stack is not None:
            stack = rows.encode_text(Stack(now, update.stack))
            rows.note_run(tx, update.key, update.token, worker, stack=stack)
            tx.execute(_TAKEN, (update.key, update.token))
    return fenced


def ask_stack(tx: sqlite3.Connection, id_: str) -> bool:
    """Notes that somebody wants to know where a running job is, and forgets where it was before."""
    return tx.execute(_ASK, (id_,)).rowcount > 0
