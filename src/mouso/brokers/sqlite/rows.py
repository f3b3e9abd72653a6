"""Small steps that several verbs share, each inside the caller's transaction; and rows to records and back."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from mouso.brokers.base import WorkerInfo
from mouso.errors import ErrorInfo, shown
from mouso.job import (
    FINAL,
    KEPT_RUNS,
    LIVE,
    Job,
    JobState,
    Outcome,
    Progress,
    RunInfo,
    Stack,
    UniqueScope,
    decode_log,
    end_of_run,
    measures,
)

Tallies = Counter[tuple[str, str]]
"""Changes to the number of finished jobs, by queue and state."""

log = logging.getLogger("mouso.brokers.sqlite")

PARKED = "parked"
MOST_IDS = 500
BAD_STATE = "bad_state"
KNOWN_LIVE = ", ".join(f"'{state}'" for state in sorted({*LIVE, PARKED}))
KNOWN_FINAL = ", ".join(f"'{state}'" for state in sorted(FINAL))
"""The states that Mouso writes into either table, as SQL."""
MOST = 2**63 - 1
"""The highest number of a column; one more is a REAL, which the column refuses."""

_UNREADABLE = (msgspec.MsgspecError, RecursionError)
_SCOPES = {scope.value: scope for scope in UniqueScope}
_ERROR = msgspec.json.Decoder(ErrorInfo)
_WORKER = msgspec.json.Decoder(WorkerInfo)
_PROGRESS = msgspec.json.Decoder(Progress)
_STACK = msgspec.json.Decoder(Stack)

_JOB = """
SELECT j.seq, j.id, j.task, j.payload, j.codec, j.queue, j.priority, l.due, coalesce(l.expires_at, h.expires_at),
       j.unique_key, j.unique_scope, j.unique_period, j.options, l.state,
       coalesce(l.attempts, h.attempts), coalesce(l.crashes, h.crashes), coalesce(l.releases, h.releases),
       coalesce(l.claims, h.claims), j.enqueued_at, h.finished_at, h.run_seconds,
       coalesce(h.worker, (SELECT id FROM mouso_workers WHERE n = l.worker)), l.cancel,
       coalesce(l.progress, h.progress), h.result, h.reason, h.started_at, h.cpu_seconds, h.peak_memory, h.pid, h.state
FROM mouso_jobs j LEFT JOIN mouso_live l USING (seq) LEFT JOIN mouso_history h USING (seq)
"""


def fetch(tx: sqlite3.Connection, sql: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
    """All rows of a query; for many rows of text, which this decodes faster than ``lenient`` does."""
    tx.text_factory = str
    try:
        return tx.execute(sql, values).fetchall()
    except sqlite3.OperationalError as error:
        if "decode" not in str(error):
            raise
    finally:
        tx.text_factory = lenient
    return tx.execute(sql, values).fetchall()


def lenient(raw: bytes) -> str:
    """The text of a column; what is no UTF-8, which only another program can have written, is replaced."""
    return raw.decode("utf-8", "replace")


def marks(values: Sequence[object]) -> str:
    """``?, ?, ?`` for a list of parameters."""
    return ", ".join("?" * len(values))


def read_jobs(tx: sqlite3.Connection, seqs: Sequence[int], *, errors: bool) -> dict[int, Job]:
    """Reads jobs by seq."""
    rows = fetch(tx, f"{_JOB} WHERE j.seq IN ({marks(seqs)}) AND j.id <> ''", seqs)
    failures: dict[int, list[ErrorInfo]] = {}
    if errors:
        for seq, text in tx.execute(
            f"SELECT seq, error FROM mouso_errors WHERE seq IN ({marks(seqs)}) ORDER BY seq, claims",
            seqs,
        ):
            failures.setdefault(seq, []).append(_error(text))
    return {row[0]: _job(row, tuple(failures.get(row[0], ()))) for row in rows}


def state_of(live: str | None, history: str | None) -> JobState:
    """The state of a job, of its row of either table.

    It is dead if it is in no state that Mouso writes there: so it can be seen, retried and deleted.
    """
    if live == PARKED:
        return JobState.AVAILABLE
    state, possible = (history, FINAL) if live is None else (live, LIVE)
    return JobState(state) if state in possible else JobState.DEAD


def _job(row: tuple[Any, ...], errors: tuple[ErrorInfo, ...]) -> Job:
    live, history = row[13], row[30]
    state, reason = state_of(live, history), row[25] or ""
    if state is JobState.DEAD and history != state:
        reason = BAD_STATE
        errors = (*errors, _bad_state(live if live is not None else history))
    return Job(
        id=row[1],
        task=row[2],
        payload=row[3],
        codec=row[4],
        queue=row[5],
        priority=row[6],
        due=row[7],
        expires_at=row[8],
        unique=row[9],
        unique_scope=_SCOPES.get(row[10], UniqueScope.LIVE),
        unique_period=row[11],
        options=row[12],
        state=state,
        attempts=row[14] or 0,
        crashes=row[15] or 0,
        releases=row[16] or 0,
        claims=row[17] or 0,
        enqueued_at=row[18],
        finished_at=row[19],
        run_seconds=row[20],
        started_at=row[26],
        cpu_seconds=row[27],
        peak_memory=row[28],
        pid=row[29],
        worker=row[21],
        parked=live == PARKED,
        cancel_requested=bool(row[22]),
        progress=decode_progress(row[23]),
        result=row[24],
        reason=reason,
        errors=errors,
    )


def _bad_state(found: str | None) -> ErrorInfo:
    what = "has no state for this job" if found is None else f"holds the state {shown(found)}, which is none here"
    return ErrorInfo(
        type="BadState",
        reason=BAD_STATE,
        message=f"the store {what}; another program wrote it, retry or delete the job",
    )


def decode_progress(text: str | None) -> Progress | None:
    """Reads the stored form of a progress."""
    try:
        return None if text is None else _PROGRESS.decode(text)
    except _UNREADABLE:
        return None


def read_worker(id: str, text: str) -> WorkerInfo:
    """What a worker says of itself; its id alone if another program broke that."""
    try:
        return _WORKER.decode(text)
    except _UNREADABLE:
        return WorkerInfo(id=id, name=id, host="", pid=0)


def _error(text: str) -> ErrorInfo:
    """A stored failure; one that another program wrote or broke does not keep its job from being read."""
    try:
        return _ERROR.decode(text)
    except _UNREADABLE:
        return ErrorInfo(type="Unreadable", message="the stored error cannot be read; another program wrote it")


def encode_text(value: object) -> str:
    """JSON as text, for columns that people read."""
    return msgspec.json.encode(value).decode()


def finish(
    tx: sqlite3.Connection,
    seq: int,
    state: JobState,
    now: int,
    tallies: Tallies,
    *,
    reason: str = "",
    worker: str | None = None,
    outcome: Outcome | None = None,
) -> None:
    """Moves a live job to the history as ``state``, with the end of its last run if that caused it.

    A job that is in the history as well stays there as it is: it had ended, and another program has made it live again.
    """
    run: tuple[object, ...] = (None,) * 7
    if outcome is not None:
        keep_until = None if outcome.keep is None else now + outcome.keep
        run = (
            outcome.run_seconds, outcome.started_at, outcome.cpu_seconds, outcome.peak_memory, outcome.pid,
            outcome.result, keep_until,
        )  # fmt: skip
    moved = tx.execute(
        "INSERT INTO mouso_history (seq, state, queue, finished_at, worker, claims, attempts, crashes, releases,"
        " expires_at, reason, progress, run_seconds, started_at, cpu_seconds, peak_memory, pid, result, keep_until)"
        " SELECT seq, ?, queue, ?, ?, claims, attempts, crashes, releases, expires_at, ?, progress, ?, ?, ?, ?, ?, ?, ?"
        " FROM mouso_live WHERE seq = ? ON CONFLICT (seq) DO NOTHING RETURNING queue",
        (state, now, worker, reason, *run, seq),
    ).fetchone()
    tx.execute("DELETE FROM mouso_live WHERE seq = ?", (seq,))
    if moved is None:
        [known] = tx.execute("SELECT id FROM mouso_jobs WHERE seq = ?", (seq,)).fetchone() or [f"with seq {seq}"]
        log.error("job %s had ended, and another program made it live again: its end as %s is not kept", known, state)
    else:
        tallies[moved[0], state] += 1


def forget(tx: sqlite3.Connection, seqs: Iterable[int], *, free_keys: bool = False) -> None:
    """Deletes all that is kept of jobs but their tallies and, unless ``free_keys``, what they hold for a period."""
    keys = [(seq,) for seq in seqs]
    if free_keys:
        tx.executemany(
            "DELETE FROM mouso_unique_periods WHERE (key, id) IN"
            " (SELECT unique_key, id FROM mouso_jobs WHERE seq = ? AND unique_scope = 'period')",
            keys,
        )
    for table in ("mouso_live", "mouso_history", "mouso_errors", "mouso_runs", "mouso_jobs"):
        tx.executemany(f"DELETE FROM {table} WHERE seq = ?", keys)
    tx.executemany("UPDATE mouso_jobs SET seq = ? WHERE id = '' AND seq < ?", [max(keys) * 2] if keys else [])


def give_back(tx: sqlite3.Connection, number: int, limit: int, now: int, tallies: Tallies) -> int:
    """Releases up to ``limit`` running claims of the worker ``number``; those to be cancelled are cancelled."""
    running = tx.execute(
        "SELECT seq FROM mouso_live WHERE state = 'running' AND worker = ? LIMIT ?", (number, limit)
    ).fetchall()
    for (seq,) in running:
        give_back_one(tx, seq, now, tallies)
    return len(running)


def give_back_one(tx: sqlite3.Connection, seq: int, now: int, tallies: Tallies) -> None:
    """Releases a running claim, or cancels it if that was asked for."""
    (cancel,) = tx.execute(
        f"UPDATE mouso_live SET state = 'available', worker = NULL, releases = min(releases, {MOST - 1}) + 1"
        " WHERE seq = ? RETURNING cancel",
        (seq,),
    ).fetchone()
    if cancel:
        finish(tx, seq, JobState.CANCELLED, now, tallies, reason="cancelled")


_NOTE = """
INSERT INTO mouso_runs (seq, claims, attempt, worker, {column}) SELECT seq, claims, min(attempts, {most}) + 1, ?, ?
FROM mouso_live WHERE seq = ? AND claims = ?
ON CONFLICT DO UPDATE SET worker = excluded.worker, {column} = excluded.{column}
"""
_END = "UPDATE mouso_runs SET worker = ?, run = ? WHERE seq = ? AND claims = ? AND coalesce(log, stack) IS NOT NULL"
_TRIM = f"DELETE FROM mouso_runs WHERE seq = ? AND claims <= ? - {KEPT_RUNS}"


def note_run(tx: sqlite3.Connection, key: int | str, token: int, worker: str, **facts: str) -> None:
    """Adds to what is known of the run of a live job: its ``run``, ``log`` or ``stack``, as stored."""
    for column, value in facts.items():
        tx.execute(_NOTE.format(column=column, most=MOST - 1), (worker, value, key, token))
    tx.execute(_TRIM, (key, token))


def end_run(tx: sqlite3.Connection, worker: str, outcome: Outcome) -> None:
    """Keeps what a run that did not complete took, and what any run logged."""
    facts = {} if outcome.log is None else {"log": outcome.log.decode()}
    if outcome.state is not JobState.COMPLETED:
        took = measures(outcome)
        run = encode_text({"end": end_of_run(outcome.state, outcome.charge), **took})
        if took or facts:
            facts["run"] = run
        else:
            tx.execute(_END, (worker, run, outcome.key, outcome.token))
    if facts:
        note_run(tx, outcome.key, outcome.token, worker, **facts)


def read_runs(tx: sqlite3.Connection, job: Job) -> list[RunInfo]:
    """What is known of the runs of a job, oldest first."""
    found = fetch(
        tx,
        "SELECT claims, attempt, worker, run, log, stack FROM mouso_runs JOIN mouso_jobs USING (seq) WHERE id = ?"
        f" AND claims > ? - {KEPT_RUNS} AND coalesce(run, log, stack) IS NOT NULL ORDER BY claims",
        (job.id, job.claims),
    )
    runs = [_run(row, job) for row in found]
    if job.state is JobState.COMPLETED and job.started_at is not None and not (runs and runs[-1].token == job.claims):
        runs.append(_completed(job))
    return runs


def _completed(job: Job, **facts: Any) -> RunInfo:
    return RunInfo(
        token=job.claims,
        attempt=job.attempts + 1,
        end="completed",
        worker=job.worker or "",
        **measures(job),
        **facts,
    )


def _run(row: tuple[Any, ...], job: Job) -> RunInfo:
    """A run; what cannot be read of it, because another program wrote it, is left out."""
    token, attempt, worker, run, log, stack = row
    facts: dict[str, Any] = {}
    with suppress(*_UNREADABLE):
        facts |= decode_log(log)
    with suppress(*_UNREADABLE):
        facts["stack"] = None if stack is None else _STACK.decode(stack)
    if token == job.claims and job.state is JobState.COMPLETED:
        return _completed(job, **facts)
    if run is not None:
        with suppress(*_UNREADABLE):
            facts |= msgspec.structs.asdict(_ENDED.decode(run))
    elif token != job.claims or job.state is not JobState.RUNNING:
        facts["end"] = "lost"
    return RunInfo(token=token, attempt=attempt, worker=worker, **facts)


class _Ended(msgspec.Struct):
    """What stands in ``mouso_runs.run``."""

    end: str
    started_at: int | None = None
    run_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory: int | None = None
    pid: int | None = None


_ENDED = msgspec.json.Decoder(_Ended)


def store_tallies(tx: sqlite3.Connection, tallies: Tallies) -> None:
    """Adds the changes to the stored counts."""
    tx.executemany(
        "INSERT INTO mouso_tallies (queue, state, n) VALUES (?, ?, ?)"
        f" ON CONFLICT DO UPDATE SET n = min(max(n, -{MOST // 2}), {MOST // 2}) + excluded.n",
        [(queue, state, n) for (queue, state), n in tallies.items()],
    )
