"""A job as a message: all that has to be known of it travels in the body, as its sender or its last run left it."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec
from msgspec.structs import replace

from mouso.errors import ErrorInfo
from mouso.job import Charge, Job, JobState, Lease, Outcome, measures

FOREIGN = "foreign"
"""Why a message of another program is dead."""
_ERRORS = 10
"""A message brings along the first error of its job and the last ones, so many in all."""
_TRACEBACKS = 3
"""So many of the last have their tracebacks still."""


class Letter(msgspec.Struct, frozen=True, array_like=True, gc=False, omit_defaults=True):
    """A job on its way. The fields have a fixed order; a newer version may only add some at the end.

    Attributes:
        hold: ms that the worker which gets it waits before the job may start: what a delay has below a second.
        claims: Claims that are over; those under which only the connection was lost are counted by the server.
        lost: Deliveries whose worker or connection was lost, of earlier messages with this job.
        strayed: How often it came to a worker that does not know its task.
        state, reason, finished_at: Of a job among the dead letters.
    """

    id: str
    task: str
    payload: bytes
    codec: str = "json"
    queue: str = "default"
    priority: int = 0
    options: bytes | None = None
    enqueued_at: int = 0
    expires_at: int | None = None
    hold: int = 0
    attempts: int = 0
    crashes: int = 0
    releases: int = 0
    claims: int = 0
    lost: int = 0
    strayed: int = 0
    errors: tuple[ErrorInfo, ...] = ()
    state: JobState = JobState.AVAILABLE
    reason: str = ""
    finished_at: int | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Letter)


def encode(letter: Letter) -> bytes:
    """The body of the message."""
    return _encoder.encode(letter)


def decode(body: bytes) -> Letter:
    """What a message brings; one of another program is made a dead letter, with its body for arguments."""
    try:
        return _decoder.decode(body)
    except msgspec.MsgspecError as error:
        why = ErrorInfo(type="BadPayload", message=f"it is no job of Mouso's: {error}", reason=FOREIGN)
        id = f"foreign-{sha256(body).hexdigest()[:24]}"  # the same each time that it is looked at
        return Letter(id, "unknown", body, state=JobState.DEAD, reason=FOREIGN, errors=(why,))


def letter_of(job: Job, now: int) -> Letter:
    """A job that is enqueued now."""
    due = now + job.delay if job.delay is not None else job.due
    return Letter(
        job.id,
        job.task,
        job.payload,
        job.codec,
        job.queue,
        job.priority,
        job.options,
        now,
        job.expires_at if job.ttl is None else now + job.ttl,
        0 if due is None else max(due - now, 0),
    )


def lease_of(letter: Letter, key: int, token: int, now: int) -> Lease:
    """A claim of the job."""
    return Lease(
        key,
        token,
        letter.id,
        letter.task,
        letter.queue,
        letter.payload,
        letter.codec,
        letter.attempts,
        letter.crashes,
        letter.releases,
        letter.enqueued_at,
        None if letter.expires_at is None else letter.expires_at - now,
        letter.options,
        letter.priority,
    )


def job_of(letter: Letter) -> Job:
    """A job among the dead letters, as it is listed."""
    return Job(
        id=letter.id,
        task=letter.task,
        payload=letter.payload,
        codec=letter.codec,
        queue=letter.queue,
        priority=letter.priority,
        expires_at=letter.expires_at,
        options=letter.options,
        state=letter.state,
        attempts=letter.attempts,
        crashes=letter.crashes,
        releases=letter.releases,
        claims=letter.claims,
        enqueued_at=letter.enqueued_at,
        finished_at=letter.finished_at,
        reason=letter.reason,
        errors=letter.errors,
    )


def settled(letter: Letter, outcome: Outcome, worker: str, now: int) -> Letter | None:
    """The job after a run; None if nothing is left to be done about it, or to be kept of it."""
    if outcome.state in (JobState.COMPLETED, JobState.CANCELLED):
        return None
    changes: dict[str, Any] = {"claims": outcome.token, "hold": outcome.delay, "strayed": 0}
    if outcome.charge is not Charge.NONE:
        changes[outcome.charge.value] = getattr(letter, outcome.charge.value) + 1
    if outcome.charge is not Charge.RELEASE:
        changes["lost"] = 0
    if outcome.error is not None:
        error = replace(outcome.error, at=now, worker=worker, token=outcome.token, **measures(outcome))
        changes["errors"] = _bounded((*letter.errors, error))
    left = replace(letter, **changes)
    return ended(left, outcome.state, outcome.reason, now) if outcome.state.final else left


def ended(letter: Letter, state: JobState, reason: str, now: int) -> Letter:
    """The job as a dead letter."""
    return replace(letter, state=state, reason=reason or state.value, finished_at=now, hold=0)


def revived(letter: Letter, payload: bytes | None) -> Letter:
    """A dead letter that is to run again."""
    return replace(
        letter,
        payload=letter.payload if payload is None else payload,
        attempts=0,
        crashes=0,
        lost=0,
        strayed=0,
        hold=0,
        expires_at=None,
        state=JobState.AVAILABLE,
        reason="",
        finished_at=None,
    )


def _bounded(errors: tuple[ErrorInfo, ...]) -> tuple[ErrorInfo, ...]:
    if len(errors) > _ERRORS:
        errors = (errors[0], *errors[1 - _ERRORS :])
    old, new = errors[:-_TRACEBACKS], errors[-_TRACEBACKS:]
    return (*(replace(error, traceback="") if error.traceback else error for error in old), *new)
