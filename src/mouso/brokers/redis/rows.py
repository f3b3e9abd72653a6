"""What stands in Redis, to records and back. Headers are read by scripts too; bodies by Python only."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from mouso.errors import ErrorInfo
from mouso.job import (
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

STATES = tuple(JobState)
"""States by their number in records, less one."""
NUMBERS = {state: number for number, state in enumerate(STATES, 1)}
PARKED = 10

_SCOPES = {UniqueScope.QUEUED: 1, UniqueScope.LIVE: 2, UniqueScope.PERIOD: 3}
_SCOPE_OF = {number: scope for scope, number in _SCOPES.items()}
_CHARGES = {Charge.NONE: 0, Charge.ATTEMPT: 1, Charge.CRASH: 2, Charge.RELEASE: 3}
_TIMES = struct.Struct(">ddddH")
_HEAD = struct.Struct(">Hdd")
_LEASE = struct.Struct(">15sdddddI")
_COMPLETED = struct.Struct(">B15sddI")
_ENDED = struct.Struct(">B15sdBBBddH")
_STATE = struct.Struct(">BddddBdBB")
_FINAL = struct.Struct(">BdddddB")
_ERROR = struct.Struct(">dI")
_LENGTH = struct.Struct(">I")

_encode = msgspec.msgpack.Encoder().encode
_body = msgspec.msgpack.Decoder(tuple[str, str, str, bytes, str, bytes | None, int]).decode
_run_facts = msgspec.msgpack.Decoder(
    tuple[float | None, int | None, float | None, int | None, int | None, bytes | None]
).decode
_json = msgspec.json.Encoder().encode
_error = msgspec.json.Decoder(ErrorInfo).decode
_progress = msgspec.json.Decoder(Progress).decode
_run = msgspec.json.Decoder(dict[str, Any]).decode


# -- to Redis


def job_argument(job: Job) -> bytes:
    """A job for ``enqueue``."""
    queue, task, unique, id = (text.encode() for text in (job.queue, job.task, job.unique or "", job.id))
    header = b"".join(
        (
            struct.pack(">hB", job.priority, len(queue)),
            queue,
            struct.pack(">H", len(task)),
            task,
            struct.pack(">H", len(unique)),
            unique,
            struct.pack(">BdB", _SCOPES[job.unique_scope] if unique else 0, job.unique_period, len(id)),
            id,
        )
    )
    times = (-1 if value is None else value for value in (job.delay, job.due, job.ttl, job.expires_at))
    return _TIMES.pack(*times, len(header)) + header + body(job, job.payload)


def seq(key: int | str) -> bytes:
    """A job's key as scripts know it; one that no job has if that cannot be."""
    return b"%015d" % key if isinstance(key, int) and 0 <= key < 10**15 else b"-" * 15


def body(job: Job, payload: bytes) -> bytes:
    """What only Python reads of a job."""
    return _encode((job.id, job.task, job.queue, payload, job.codec, job.options, job.priority))


def outcomes_argument(outcomes: Iterable[Outcome], worker: str) -> bytes:
    """Outcomes for ``exchange``."""
    parts: list[bytes] = []
    for o in outcomes:
        facts = _encode((o.run_seconds, o.started_at, o.cpu_seconds, o.peak_memory, o.pid, o.result))
        log = o.log or b""
        keep = -1 if o.keep is None else o.keep
        if o.state is JobState.COMPLETED:
            parts += (_COMPLETED.pack(1, seq(o.key), o.token, keep, len(facts)), facts, _LENGTH.pack(len(log)), log)
        else:
            parts += _ended(o, worker, facts, keep, log)
    return b"".join(parts)


def _ended(o: Outcome, worker: str, facts: bytes, keep: int, log: bytes) -> Iterator[bytes]:
    took = measures(o)
    reason = o.reason.encode()
    error = b""
    if o.error is not None:
        error = _json(msgspec.structs.replace(o.error, worker=worker, token=o.token, **took))
    run = _json({"end": end_of_run(o.state, o.charge), **took})
    state, charge = NUMBERS[o.state], _CHARGES[o.charge]
    yield _ENDED.pack(2, seq(o.key), o.token, state, charge, bool(took), o.delay, keep, len(reason))
    yield reason
    for part in (facts, error, run, log):
        yield _LENGTH.pack(len(part))
        yield part


# -- from Redis


def leases(packed: bytes) -> list[Lease]:
    """What ``exchange`` has claimed."""
    found, at, view = [], 0, memoryview(packed)
    while at < len(packed):
        key, token, attempts, crashes, releases, ttl, length = _LEASE.unpack_from(packed, at)
        at += _LEASE.size
        header, enqueued, _ = _HEAD.unpack_from(packed, at)
        id, task, queue, payload, codec, options, priority = _body(view[at + header : at + length])
        at += length
        found.append(
            Lease(
                int(key), int(token), id, task, queue, payload, codec, int(attempts), int(crashes), int(releases),
                int(enqueued), None if ttl < 0 else int(ttl), options, priority,
            )
        )  # fmt: skip
    return found


def job(found: Sequence[Any], id: str) -> Job | None:
    """A job as ``get`` returns it.

    Args:
        id: What it is known by if another program has deleted its body; empty if that is not known either.
    """
    _, record, live, final, progress, cancels, errors = found
    if not record and not id:
        return None
    given = _given(record) if record else {"id": id, "task": ""}
    facts: dict[str, Any] = {"state": JobState.DEAD, "reason": "bad_state"}
    if live:
        facts = _live(live)
        facts["cancel_requested"] = facts["state"] is JobState.RUNNING and bool(cancels)
    elif final:
        facts = _final(final)
    return Job(**given, **facts, progress=read_progress(progress), errors=tuple(_errors(errors)))


def _given(record: bytes) -> dict[str, Any]:
    header, enqueued, expires = _HEAD.unpack_from(record)
    at = _HEAD.size + 2
    _, at = _short(record, at, ">B")
    _, at = _short(record, at, ">H")
    unique, at = _short(record, at, ">H")
    scope, period = struct.unpack_from(">Bd", record, at)
    id, task, queue, payload, codec, options, priority = _body(memoryview(record)[header:])
    return {
        "id": id,
        "task": task,
        "queue": queue,
        "payload": payload,
        "codec": codec,
        "options": options,
        "priority": priority,
        "enqueued_at": int(enqueued),
        "expires_at": None if expires < 0 else int(expires),
        "unique": unique or None,
        "unique_scope": _SCOPE_OF.get(scope, UniqueScope.LIVE),
        "unique_period": int(period),
    }


def _live(record: bytes) -> dict[str, Any]:
    state, attempts, crashes, releases, claims, _, due, _, _ = _STATE.unpack_from(record)
    worker, _ = _short(record, _STATE.size, ">B")
    known = JobState.AVAILABLE if state == PARKED else STATES[state - 1]
    return {
        "state": known,
        "parked": state == PARKED,
        "attempts": int(attempts),
        "crashes": int(crashes),
        "releases": int(releases),
        "claims": int(claims),
        "due": int(due) if known in (JobState.SCHEDULED, JobState.RETRYABLE) else None,
        "worker": worker or None,
    }


def _final(record: bytes) -> dict[str, Any]:
    state, finished_at, attempts, crashes, releases, claims, _ = _FINAL.unpack_from(record)
    worker, at = _short(record, _FINAL.size, ">B")
    _, at = _short(record, at, ">B")
    reason, at = _short(record, at, ">H")
    names = ("run_seconds", "started_at", "cpu_seconds", "peak_memory", "pid", "result")
    run = dict(zip(names, _run_facts(memoryview(record)[at:]), strict=True)) if at < len(record) else {}
    return {
        "state": STATES[state - 1],
        "finished_at": int(finished_at),
        "attempts": int(attempts),
        "crashes": int(crashes),
        "releases": int(releases),
        "claims": int(claims),
        "worker": worker or None,
        "reason": reason,
        **run,
    }


def _short(record: bytes, at: int, size: str) -> tuple[str, int]:
    """A text after its length."""
    (length,) = struct.unpack_from(size, record, at)
    at += struct.calcsize(size)
    return record[at : at + length].decode(), at + length


def _errors(packed: bytes | None) -> Iterator[ErrorInfo]:
    at = 0
    while packed and at < len(packed):
        when, length = _ERROR.unpack_from(packed, at)
        at += _ERROR.size
        yield msgspec.structs.replace(_error(packed[at : at + length]), at=int(when))
        at += length


def read_progress(text: bytes | None) -> Progress | None:
    """A progress as it is stored."""
    return _progress(text) if text else None


def stack(packed: bytes) -> Stack:
    """A stack as it is stored."""
    (at,) = struct.unpack_from(">d", packed)
    return Stack(int(at), packed[8:].decode())


def runs(reply: Sequence[Any], job: Job) -> list[RunInfo]:
    """The runs of a job, from the reply of the script."""
    found: list[RunInfo] = []
    for at in range(0, len(reply), 5):
        token, of, end, log, where = reply[at : at + 5]
        attempt, _, worker = of.decode().partition(":")
        facts: dict[str, Any] = decode_log(log) | ({"stack": stack(where)} if where else {})
        if token == job.claims and job.state is JobState.COMPLETED:
            facts |= {"end": "completed", **measures(job)}
        elif end:
            facts |= _run(end)
        elif token != job.claims or job.state is not JobState.RUNNING:
            facts["end"] = "lost"
        found.append(RunInfo(token=token, attempt=int(attempt), worker=worker, **facts))
    if job.state is JobState.COMPLETED and job.started_at is not None and not (found and found[-1].token == job.claims):
        completed = RunInfo(
            token=job.claims, attempt=job.attempts + 1, end="completed", worker=job.worker or "", **measures(job)
        )
        found.append(completed)
    return found
