"""Small steps that several verbs share, each inside the caller's transaction; and rows to records and back."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from mouso.errors import ErrorInfo
from mouso.job import (
    KEPT_RUNS,
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

PARKED = "parked"
MOST_IDS = 500

_ERROR = msgspec.json.Decoder(ErrorInfo)
_PROGRESS = msgspec.json.Decoder(Progress)
_STACK = msgspec.json.Decoder(Stack)

_JOB = """
SELECT j.seq, j.id, j.task, j.payload, j.codec, j.queue, j.priority, l.due, coalesce(l.expires_at, h.expires_at),
       j.unique_key, j.unique_scope, j.unique_period, j.options, coalesce(l.state, h.state),
       coalesce(l.attempts, h.attempts), coalesce(l.crashes, h.crashes), coalesce(l.releases, h.releases),
       coalesce(l.claims, h.claims), j.enqueued_at, h.finished_at, h.run_seconds,
       coalesce(h.worker, (SELECT id FROM mouso_workers WHERE n = l.worker)), l.cancel,
       coalesce(l.progress, h.progress), h.result, h.reason, h.started_at, h.cpu_seconds, h.peak_memory, h.pid
FROM mouso_jobs j LEFT JOIN mouso_live l USING (seq) LEFT JOIN mouso_history h USING (seq)
"""


def fetch(tx: sqlite3.Connection, sql: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
    """All rows of a query; text that is no UTF-8, which only another program can have written, is replaced."""
    try:
        return tx.execute(sql, values).fetchall()
    except sqlite3.OperationalError as error:
        if "decode" not in str(error):
            raise
    tx.text_factory = lambda raw: raw.decode("utf-8", "replace")
    try:
        return tx.execute(sql, values).fetchall()
    finally:
        tx.text_factory = str


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


def _job(row: tuple[Any, ...], errors: tuple[ErrorInfo, ...]) -> Job:
    parked = row[13] == PARKED
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
        unique_scope=UniqueScope(row[10]) if row[10] else UniqueScope.LIVE,
        unique_period=row[11],
        options=row[12],
        state=JobState.AVAILABLE if parked else JobState(row[13]),
        attempts=row[14],
        crashes=row[15],
        releases=row[16],
        claims=row[17],
        enqueued_at=row[18],
        finished_at=row[19],
        run_seconds=row[20],
        started_at=row[26],
        cpu_seconds=row[27],
        peak_memory=row[28],
        pid=row[29],
        worker=row[21],
        parked=parked,
        cancel_requested=bool(row[22]),
        progress=decode_progress(row[23]),
        result=row[24],
        reason=row[25] or "",
        errors=errors,
    )


def decode_progress(text: str | None) -> Progress | None:
    """Reads the stored form of a progress."""
    try:
        return None if text is None else _PROGRESS.decode(text)
    except msgspec.MsgspecError:
        return None


def _error(text: str) -> ErrorInfo:
    """A stored failure; one that another program wrote or broke does not keep its job from being read."""
    try:
        return _ERROR.decode(text)
    except msgspec.MsgspecError:
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
    """Moves a live job to the history as ``state``, with the end of its last run if that caused it."""
    run: tuple[object, ...] = (None,) * 7
    if outcome is not None:
        keep_until = None if outcome.keep is None else now + outcome.keep
        run = (
            outcome.run_seconds, outcome.started_at, outcome.cpu_seconds, outcome.peak_memory, outcome.pid,
            outcome.result, keep_until,
        )  # fmt: skip
    (queue,) = tx.execute(
        "INSERT INTO mouso_history (seq, state, queue, finished_at, worker, claims, attempts, crashes, releases,"
        " expires_at, reason, progress, run_seconds, started_at, cpu_seconds, peak_memory, pid, result, keep_until)"
        " SELECT seq, ?, queue, ?, ?, claims, attempts, crashes, releases, expires_at, ?, progress, ?, ?, ?, ?, ?, ?, ?"
        " FROM mouso_live WHERE seq = ? RETURNING queue",
        (state, now, worker, reason, *run, seq),
    ).fetchone()
    tx.execute("DELETE FROM mouso_live WHERE seq = ?", (seq,))
    tallies[queue, state] += 1


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
        "UPDATE mouso_live SET state = 'available', worker = NULL, releases = releases + 1 WHERE seq = ?"
        " RETURNING cancel",
        (seq,),
    ).fetchone()
    if cancel:
        finish(tx, seq, JobState.CANCELLED, now, tallies, reason="cancelled")


_NOTE = """
INSERT INTO mouso_runs (seq, claims, attempt, worker, {column}) SELECT seq, claims, attempts + 1, ?, ?
FROM mouso_live WHERE seq = ? AND claims = ?
ON CONFLICT DO UPDATE SET worker = excluded.worker, {column} = excluded.{column}
"""
_END = "UPDATE mouso_runs SET worker = ?, run = ? WHERE seq = ? AND claims = ?"
_TRIM = f"DELETE FROM mouso_runs WHERE seq = ? AND claims <= ? - {KEPT_RUNS}"


def note_run(tx: sqlite3.Connection, key: int | str, token: int, worker: str, **facts: str) -> None:
    """Adds to what is known of the run of a live job: its ``run``, ``log`` or ``stack``, as stored."""
    for column, value in facts.items():
        tx.execute(_NOTE.format(column=column), (worker, value, key, token))
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
    with suppress(msgspec.MsgspecError):
        facts |= decode_log(log)
    with suppress(msgspec.MsgspecError):
        facts["stack"] = None if stack is None else _STACK.decode(stack)
    if token == job.claims and job.state is JobState.COMPLETED:
        return _completed(job, **facts)
    if run is not None:
        with suppress(msgspec.MsgspecError):
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
        "INSERT INTO mouso_tallies VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n",
        [(queue, state, n) for (queue, state), n in tallies.items()],
    )
