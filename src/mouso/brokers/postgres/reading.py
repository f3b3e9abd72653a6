"""What can be seen of a store: jobs, runs, queues, workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace
from psycopg import pq

from mouso.brokers.base import JobFilter, JobUpdate, QueueInfo, WorkerInfo
from mouso.brokers.postgres import rows, wire
from mouso.brokers.postgres.wire import BIGINT
from mouso.job import FINAL, LIVE, Job, JobState, RunInfo

Query = Callable[..., pq.abc.PGresult]
"""Runs a statement with its parameters, in which ``{schema}`` stands for the schema."""

_ERRORS = (
    "(SELECT string_agg(error, E'\\n' ORDER BY claims) FROM {schema}.runs r WHERE r.seq = e.seq AND r.day = e.day"
    " AND error IS NOT NULL)"
)
_GET = f"{rows.JOB}, {_ERRORS} FROM {{schema}}.read({{schema}}.locate($1, $2)) e"
_SOME = f"{rows.JOB} FROM {{schema}}.read($1)"


def table(found: pq.abc.PGresult | None) -> list[tuple[Any, ...]]:
    """All values of a result."""
    if found is None:
        return []
    value = found.get_value
    return [tuple(value(row, column) for column in range(found.nfields)) for row in range(found.ntuples)]


def get(query: Query, ids: Sequence[str]) -> list[Job | None]:
    """Jobs with their errors, in order."""
    if not ids:
        return []
    found = query(_GET, *rows.ids(ids))
    jobs = [rows.job(found, row, rows.errors(found.get_value(row, 31))) for row in range(found.ntuples)]
    by_id = {job.id: job for job in jobs}
    return [by_id.get(id) for id in ids]


def runs(query: Query, id: str) -> list[RunInfo]:
    """What is known of the runs of a job."""
    found = query(_GET, *rows.ids([id]))
    if not found.ntuples:
        return []
    job = rows.job(found, 0)
    known = query(rows.RUNS, found.get_value(0, 0), wire.small(rows.day(id)), wire.number(job.claims))
    return rows.runs(known, job)


def find(query: Query, where: JobFilter) -> list[Job]:
    """Jobs without their errors, the last enqueued first."""
    states = frozenset(JobState) if where.states is None else where.states
    live = {state.value for state in states & LIVE}
    if JobState.AVAILABLE in states:
        live.add(rows.PARKED)
    if where.parked is not None:
        live &= {rows.PARKED} if where.parked else live - {rows.PARKED}
    final = {state.value for state in states & FINAL} if not where.parked else set()
    if not live and not final:
        return []
    values = [
        wire.texts(sorted(live)), wire.texts(sorted(final)), wire.text(where.queue), wire.text(where.task),
        wire.text(where.after), wire.small(rows.day(where.after or "")), wire.small(where.limit),
    ]  # fmt: skip
    seqs = [int.from_bytes(seq) for (seq,) in table(query(_find(where), *values))]
    found = query(_SOME, wire.numbers(BIGINT, seqs)) if seqs else None
    jobs = {}
    for row in range(found.ntuples if found else 0):
        assert found is not None
        jobs[int.from_bytes(found.get_value(row, 0) or b"")] = rows.job(found, row)
    return [jobs[seq] for seq in seqs if seq in jobs]


def _find(where: JobFilter) -> str:
    parts = []
    for source, states in (("live", "$1"), ("history", "$2")):
        task = " AND t.task = $4::text" if source == "live" else " AND j.task = $4::text"
        joined = " JOIN {schema}.jobs j ON j.seq = t.seq AND j.day = t.day" if source == "history" else ""
        parts.append(
            f"(SELECT t.seq FROM {{schema}}.{source} t{joined if where.task is not None else ''}"
            f" WHERE t.state = ANY ({states}::text[])"
            + (" AND t.queue = $3::text" if where.queue is not None else "")
            + (task if where.task is not None else "")
            + (" AND t.seq < (SELECT seq FROM page)" if where.after is not None else "")
            + " ORDER BY t.seq DESC LIMIT $7::integer)"
        )
    page = "SELECT seq FROM {schema}.jobs WHERE id = $5::text AND day = $6::integer"
    unused = "SELECT $3::text, $4::text"
    return f"WITH page AS ({page}), unused AS ({unused}) {' UNION ALL '.join(parts)} ORDER BY 1 DESC LIMIT $7::integer"


def queues(query: Query, now: bytes | None) -> list[QueueInfo]:
    """Counts by queue and state."""
    counts: dict[str, Counter[JobState]] = {}
    oldest: dict[str, int] = {}
    found = query("SELECT c.*, coalesce($1::bigint, {schema}.now()) FROM {schema}.queue_counts() c", now)
    for queue, state, n, enqueued_at, instant in table(found):
        name = queue.decode()
        counts.setdefault(name, Counter())[rows.read_state(state)] += int.from_bytes(n, signed=True)
        if enqueued_at is not None:
            oldest[name] = max(int.from_bytes(instant) - int.from_bytes(enqueued_at), 0)
    pauses: dict[str, int | None] = {}
    sql = "SELECT name, paused AND coalesce(paused_until > coalesce($1::bigint, {schema}.now()), true), paused_until"
    for name, paused, until in table(query(f"{sql} FROM {{schema}}.queues", now)):
        counts.setdefault(name.decode(), Counter())
        if paused == b"\x01":
            pauses[name.decode()] = wire.read_number(until)
    return [
        QueueInfo(
            name=name,
            counts={state: n for state, n in counts[name].items() if n > 0},
            paused=name in pauses,
            paused_until=pauses.get(name),
            oldest=oldest.get(name),
        )
        for name in sorted(counts)
    ]


def workers(query: Query, now: bytes | None, boot: bytes | None, own: bytes | None) -> list[WorkerInfo]:
    """Workers that are known, by start."""
    found = query(
        "SELECT w.id, w.info, w.beat, w.lease_until - {schema}.steady(coalesce($1::bigint, {schema}.now()), $2::text,"
        " $3::bigint), (SELECT count(*) FROM {schema}.live l WHERE l.state = 'running' AND l.worker = w.n)"
        " FROM {schema}.workers w WHERE w.reaped_at IS NULL",
        now, boot, own,
    )  # fmt: skip
    known = [
        replace(
            rows.read_worker(id.decode(), info),
            beat=int.from_bytes(beat),
            lease_left=max(int.from_bytes(left, signed=True), 0),
            running=int.from_bytes(running),
        )
        for id, info, beat, left, running in table(found)
    ]
    return sorted(known, key=lambda worker: (worker.started_at, worker.id))


def look(found: pq.abc.PGresult) -> dict[str, JobUpdate]:
    """What waiting callers see of jobs, by id."""
    updates = {}
    for id, state, attempts, progress in table(found):
        updates[id.decode()] = JobUpdate(
            id.decode(), rows.read_state(state), int.from_bytes(attempts), rows.read_progress(progress)
        )
    return updates
