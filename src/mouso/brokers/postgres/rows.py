"""Jobs, leases, outcomes and runs as columns and rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
from psycopg import pq

from mouso.brokers.base import Exchange, Update, WorkerInfo
from mouso.brokers.postgres import wire
from mouso.brokers.postgres.wire import BIGINT, DOUBLE, INTEGER, SMALLINT
from mouso.errors import ErrorInfo
from mouso.job import (
    KEPT_RUNS,
    Charge,
    Job,
    JobState,
    Lease,
    Outcome,
    Progress,
    RunInfo,
    Stack,
    UniqueScope,
    decode_log,
    end_of_run,
    measures,
)

PARKED = "parked"
JOB = (
    "SELECT seq, day, id, task, payload, codec, queue, priority, due, expires_at, unique_key, unique_scope,"
    " unique_period, options, state, attempts, crashes, releases, claims, enqueued_at, finished_at, run_seconds,"
    " started_at, cpu_seconds, peak_memory, pid, worker, cancel, progress, result, reason"
)
_DAY_MS = 86_400_000
_MOST = 2**63
_UNREADABLE = (msgspec.MsgspecError, RecursionError)
_SCOPES = {scope.value: scope for scope in UniqueScope}
_STATES = {state.value: state for state in JobState} | {PARKED: JobState.AVAILABLE}
_ERROR = msgspec.json.Decoder(ErrorInfo)
_PROGRESS = msgspec.json.Decoder(Progress)
_STACK = msgspec.json.Decoder(Stack)
_WORKER = msgspec.json.Decoder(WorkerInfo)
_json = msgspec.json.Encoder().encode


def day(id: str) -> int:
    """The day since the epoch that a UUIDv7 tells, 0 for any other id."""
    if len(id) != 36 or id[14] != "7" or id[8] != "-" or id[13] != "-":
        return 0
    try:
        return int(id[:8] + id[9:13], 16) // _DAY_MS
    except ValueError:
        return 0


def ids(values: Sequence[str]) -> tuple[bytes | None, bytes | None]:
    """Ids, and the day of each."""
    return wire.texts(values), wire.numbers(INTEGER, [day(value) for value in values])


def jobs_columns(jobs: Sequence[Job]) -> list[bytes | None]:
    """New jobs by columns, as ``enqueue`` takes them."""
    keyed = any(job.unique is not None for job in jobs)
    return [
        *ids([job.id for job in jobs]),
        wire.texts([job.task for job in jobs]),
        wire.texts([job.queue for job in jobs]),
        wire.numbers(SMALLINT, [job.priority for job in jobs]),
        wire.texts([job.codec for job in jobs]),
        wire.byte_strings([job.payload for job in jobs]),
        wire.byte_strings([job.options for job in jobs]),
        wire.numbers(BIGINT, [job.delay for job in jobs]),
        wire.numbers(BIGINT, [job.due for job in jobs]),
        wire.numbers(BIGINT, [job.ttl for job in jobs]),
        wire.numbers(BIGINT, [job.expires_at for job in jobs]),
        wire.texts([None if job.unique is None else wire.escape(job.unique) for job in jobs]) if keyed else None,
        wire.texts([None if job.unique is None else job.unique_scope for job in jobs]) if keyed else None,
        wire.numbers(BIGINT, [None if job.unique is None else job.unique_period for job in jobs]) if keyed else None,
    ]


def job_values(job: Job) -> list[bytes | None]:
    """A new job without a unique key, as ``enqueue_one`` takes it."""
    return [
        job.id.encode(), wire.small(day(job.id)), job.task.encode(), job.queue.encode(),
        job.priority.to_bytes(2, "big", signed=True), job.codec.encode(), job.payload, job.options,
        wire.number(job.due), wire.number(job.expires_at), wire.number(job.delay), wire.number(job.ttl),
    ]  # fmt: skip


def possible(key: int | str) -> bool:
    """Whether a job could have this key."""
    return isinstance(key, int) and -_MOST <= key < _MOST


def outcomes_columns(outcomes: Sequence[Outcome], worker: str) -> list[bytes | None]:
    """Outcomes as ``exchange`` takes them: completions by columns, and the others as JSON."""
    plain = [o for o in outcomes if o.state is JobState.COMPLETED and o.log is None]
    others = [o for o in outcomes if o.state is not JobState.COMPLETED or o.log is not None]
    columns: list[bytes | None] = [None] * 9
    if plain:
        columns = [
            wire.numbers(BIGINT, [int(o.key) for o in plain]),
            wire.numbers(BIGINT, [o.token for o in plain]),
            wire.numbers(DOUBLE, [o.run_seconds for o in plain]),
            wire.byte_strings([o.result for o in plain]),
            wire.numbers(BIGINT, [o.keep for o in plain]),
            wire.numbers(BIGINT, [o.started_at for o in plain]),
            wire.numbers(DOUBLE, [o.cpu_seconds for o in plain]),
            wire.numbers(BIGINT, [o.peak_memory for o in plain]),
            wire.numbers(INTEGER, [o.pid for o in plain]),
        ]
    return [*columns, _json([_other(o, worker) for o in others]) if others else None]


def _other(outcome: Outcome, worker: str) -> dict[str, Any]:
    took = measures(outcome)
    facts: dict[str, Any] = {
        "key": outcome.key,
        "token": outcome.token,
        "state": outcome.state,
        "charge": outcome.charge or "",
        "delay": outcome.delay,
        "keep": outcome.keep,
        "reason": wire.escape(outcome.reason),
        "run_seconds": outcome.run_seconds,
        **took,
    }
    if outcome.state is not JobState.COMPLETED:
        end = {"end": end_of_run(outcome.state, Charge(outcome.charge)), **took}
        facts["run"] = _json(end).decode()
    if outcome.log is not None:
        facts["log"] = outcome.log.decode()
    if outcome.result is not None:
        facts["result"] = outcome.result.hex()
    if outcome.error is not None:
        error = msgspec.structs.replace(outcome.error, at=0, worker=worker, token=outcome.token, **took)
        facts["error"] = _json(error).decode()
    return facts


def updates_columns(updates: Sequence[Update]) -> list[bytes | None]:
    """News of running claims by columns, as ``report`` takes them."""
    return [
        wire.numbers(BIGINT, [int(update.key) for update in updates]),
        wire.numbers(BIGINT, [update.token for update in updates]),
        wire.texts([None if update.progress is None else _json(update.progress).decode() for update in updates]),
        wire.texts([None if update.log is None else update.log.decode() for update in updates]),
        wire.texts([None if update.stack is None else _json(update.stack).decode() for update in updates]),
    ]


def exchange(found: pq.abc.PGresult) -> tuple[Exchange, str | None, list[str]]:
    """What an exchange did, the last queue in turn, and the queues of which it was slow."""
    value, number = found.get_value, int.from_bytes
    leases = []
    last = found.ntuples - 1
    for row in range(last):
        ttl = value(row, 11)
        leases.append(
            Lease(
                number(value(row, 0) or b""), number(value(row, 1) or b""),
                (value(row, 2) or b"").decode(), (value(row, 3) or b"").decode(), (value(row, 4) or b"").decode(),
                value(row, 5) or b"", (value(row, 6) or b"").decode(),
                number(value(row, 7) or b""), number(value(row, 8) or b""), number(value(row, 9) or b""),
                number(value(row, 10) or b""),
                None if ttl is None else number(ttl, "big", signed=True),
                value(row, 12), number(value(row, 13) or b"", "big", signed=True),
            )
        )  # fmt: skip
    done = Exchange(
        leases=leases,
        fenced=msgspec.json.decode(value(last, 14) or b"[]"),
        parked=sorted(msgspec.json.decode(value(last, 15) or b"[]")),
        next_due=wire.read_number(value(last, 16)),
    )
    return done, wire.read_text(value(last, 17)), msgspec.json.decode(value(last, 18) or b"[]")


def job(found: pq.abc.PGresult, row: int, errors: tuple[ErrorInfo, ...] = ()) -> Job:
    """A row of ``JOB``."""

    def number(column: int) -> int | None:
        return wire.read_number(found.get_value(row, column))

    def text(column: int) -> str | None:
        return wire.read_text(found.get_value(row, column))

    state, key = text(14) or "", text(10)
    return Job(
        id=text(2) or "",
        task=text(3) or "",
        payload=found.get_value(row, 4) or b"",
        codec=text(5) or "",
        queue=text(6) or "",
        priority=number(7) or 0,
        due=number(8),
        expires_at=number(9),
        unique=None if key is None else wire.unescape(key),
        unique_scope=_SCOPES.get(text(11) or "", UniqueScope.LIVE),
        unique_period=number(12) or 0,
        options=found.get_value(row, 13),
        state=_STATES.get(state, JobState.DEAD),
        attempts=number(15) or 0,
        crashes=number(16) or 0,
        releases=number(17) or 0,
        claims=number(18) or 0,
        enqueued_at=number(19) or 0,
        finished_at=number(20),
        run_seconds=wire.read_double(found.get_value(row, 21)),
        started_at=number(22),
        cpu_seconds=wire.read_double(found.get_value(row, 23)),
        peak_memory=number(24),
        pid=number(25),
        worker=text(26),
        parked=state == PARKED,
        cancel_requested=found.get_value(row, 27) == b"\x01",
        progress=read_progress(text(28)),
        result=found.get_value(row, 29),
        reason=wire.unescape(text(30) or ""),
        errors=errors,
    )


def errors(lines: bytes | None) -> tuple[ErrorInfo, ...]:
    """Stored failures, one in a line; one that another program broke does not keep its job from being read."""
    return tuple(_error(line) for line in lines.split(b"\n")) if lines else ()


def _error(line: bytes) -> ErrorInfo:
    try:
        return _ERROR.decode(line)
    except _UNREADABLE:
        return ErrorInfo(type="Unreadable", message="the stored error cannot be read; another program wrote it")


def read_state(value: bytes | None) -> JobState:
    """A stored state; what Mouso does not know counts as dead, so that it can be seen and retried."""
    return _STATES.get((value or b"").decode(), JobState.DEAD)


def read_progress(value: str | bytes | None) -> Progress | None:
    """The stored form of a progress."""
    try:
        return None if value is None else _PROGRESS.decode(value)
    except _UNREADABLE:
        return None


def read_worker(id: str, info: bytes) -> WorkerInfo:
    """What a worker says of itself; its id alone if it has not said anything, or another program broke it."""
    try:
        return _WORKER.decode(info)
    except _UNREADABLE:
        return WorkerInfo(id=id, name=id, host="", pid=0)


RUNS = (
    "SELECT claims, attempt, worker, run, log, stack FROM {schema}.runs WHERE seq = $1::bigint AND day = $2::integer"
    f" AND claims > $3::bigint - {KEPT_RUNS} AND coalesce(run, log, stack) IS NOT NULL ORDER BY claims"
)


def runs(found: pq.abc.PGresult, of: Job) -> list[RunInfo]:
    """What is known of the runs of a job, oldest first, from rows of ``RUNS``."""
    known = [_run([found.get_value(row, n) for n in range(6)], of) for row in range(found.ntuples)]
    if of.state is JobState.COMPLETED and of.started_at is not None and not (known and known[-1].token == of.claims):
        known.append(_completed(of))
    return known


def _completed(of: Job, **facts: Any) -> RunInfo:
    return RunInfo(
        token=of.claims, attempt=of.attempts + 1, end="completed", worker=of.worker or "", **measures(of), **facts
    )


def _run(row: list[bytes | None], of: Job) -> RunInfo:
    """A run; what cannot be read of it, because another program wrote it, is left out."""
    token, attempt, worker, run, log, stack = row
    facts: dict[str, Any] = {}
    with suppress(*_UNREADABLE):
        facts |= decode_log(log)
    with suppress(*_UNREADABLE):
        facts["stack"] = None if stack is None else _STACK.decode(stack)
    number = int.from_bytes(token or b"")
    if number == of.claims and of.state is JobState.COMPLETED:
        return _completed(of, **facts)
    if run is not None:
        with suppress(*_UNREADABLE):
            facts |= msgspec.structs.asdict(_ENDED.decode(run))
    elif number != of.claims or of.state is not JobState.RUNNING:
        facts["end"] = "lost"
    return RunInfo(token=number, attempt=int.from_bytes(attempt or b""), worker=(worker or b"").decode(), **facts)


class _Ended(msgspec.Struct):
    """What stands in ``runs.run``."""

    end: str
    started_at: int | None = None
    run_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory: int | None = None
    pid: int | None = None


_ENDED = msgspec.json.Decoder(_Ended)
