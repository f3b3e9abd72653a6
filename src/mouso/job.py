"""A job, its life, and the records that travel with it: the lease, the outcome, and what is known of each run.

A job's state is changed by brokers only, and only along ``TRANSITIONS``. Four counters are never mixed:

* ``attempts``: runs that failed,
* ``crashes``: runs under which the process died,
* ``releases``: claims given back uncharged (shutdown, lost worker, read-ahead),
* ``claims``: every claim ever made; never reused or lowered, so it is the fencing token.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import msgspec

from mouso.clock import SYSTEM
from mouso.errors import ErrorInfo, OptionError, shown


class JobState(StrEnum):
    """Where a job is in its life."""

    PENDING = "pending"
    SCHEDULED = "scheduled"
    AVAILABLE = "available"
    RUNNING = "running"
    RETRYABLE = "retryable"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"

    @property
    def final(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in FINAL


LIVE = frozenset({JobState.PENDING, JobState.SCHEDULED, JobState.AVAILABLE, JobState.RUNNING, JobState.RETRYABLE})
FINAL = frozenset(JobState) - LIVE

TRANSITIONS: Mapping[JobState, Mapping[JobState, str]] = MappingProxyType(
    {
        JobState.PENDING: {
            JobState.AVAILABLE: "parents done",
            JobState.SCHEDULED: "parents done, delayed",
            JobState.CANCELLED: "cancel",
            JobState.EXPIRED: "past its expiry",
        },
        JobState.SCHEDULED: {
            JobState.AVAILABLE: "due",
            JobState.CANCELLED: "cancel",
            JobState.EXPIRED: "past its expiry",
        },
        JobState.AVAILABLE: {
            JobState.RUNNING: "claim",
            JobState.CANCELLED: "cancel",
            JobState.EXPIRED: "past its expiry",
        },
        JobState.RUNNING: {
            JobState.COMPLETED: "completed",
            JobState.RETRYABLE: "failed, attempts left",
            JobState.DEAD: "failed for good",
            JobState.CANCELLED: "cancelled",
            JobState.SCHEDULED: "snooze",
            JobState.AVAILABLE: "release",
            JobState.EXPIRED: "past its expiry before it started",
        },
        JobState.RETRYABLE: {
            JobState.AVAILABLE: "due",
            JobState.CANCELLED: "cancel",
            JobState.EXPIRED: "past its expiry",
        },
        JobState.COMPLETED: {},
        JobState.CANCELLED: {JobState.AVAILABLE: "retry"},
        JobState.EXPIRED: {JobState.AVAILABLE: "retry"},
        JobState.DEAD: {JobState.AVAILABLE: "retry"},
    }
)
"""``{from: {to: what causes it}}``; a pair that is not here never happens."""


def check_transition(old: JobState, new: JobState) -> None:
    """Raises ``ValueError`` for a move that ``TRANSITIONS`` does not have."""
    if new not in TRANSITIONS[old]:
        raise ValueError(f"a job cannot go from {old} to {new}")


MAX_CRASHES = 3
"""A job whose process dies under it this often is dead with the reason ``poison``."""


class Charge(StrEnum):
    """Which counter a run that did not complete adds to."""

    NONE = ""
    ATTEMPT = "attempts"
    CRASH = "crashes"
    RELEASE = "releases"


class UniqueScope(StrEnum):
    """How long a unique key is held."""

    QUEUED = "queued"
    LIVE = "live"
    PERIOD = "period"


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """How far a running job says it is: ``done`` of ``total`` (None when unknown), and a text."""

    done: float
    total: float | None = None
    message: str = ""


class JobOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a caller overrides for one job; None leaves the task's own setting in force.

    Attributes:
        attempts: Runs in all, 1..1,000,000.
        timeout: Seconds per attempt, 0 for no limit.
        backoff: ``(base seconds, factor, cap seconds, jitter 0..1)``, see ``retry.Backoff``.
        retry_on: Qualified names of exception classes; matched against the raised class and its bases, never imported.
        discard_on: Likewise.
        keep_result: False stores no result; seconds keep the completed job with its result that long; True keeps both
            for the app's retention.
        headers: Text passed through to the task, at most 16 KiB in all.
    """

    attempts: int | None = None
    timeout: float | None = None
    backoff: tuple[float, float, float, float] | None = None
    retry_on: tuple[str, ...] | None = None
    discard_on: tuple[str, ...] | None = None
    keep_result: bool | float | None = None
    headers: dict[str, str] | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as a broker knows it. A producer fills the first block, the broker the rest.

    Attributes:
        id: 1..128 characters of ``A-Z a-z 0-9 _ . : -``; a UUIDv7 unless the caller chose it.
        task: The task's registered name.
        payload: Encoded arguments.
        codec: ``"json"`` or ``"msgpack"``.
        priority: -100..100, higher first.
        delay: ms from the enqueue until it is due, by the broker's clock.
        due: Instant from which it may run: from the producer for ``eta`` (``delay`` wins over it); a broker has it set
            exactly while the job is scheduled or retryable.
        ttl: ms from the enqueue until it expires, by the broker's clock.
        expires_at: Instant from which on it is not started.
        unique: Key that at most one job holds in its scope.
        unique_scope: How long the key is held.
        unique_period: ms, for the scope ``period``.
        options: Encoded ``JobOptions``, or None when nothing is overridden.
        parked: No worker so far knows the task; it waits for one.
        worker: Who runs it, or settled it for good.
        run_seconds: How long the last run took; like ``result``, ``reason`` and the next four set in final states only.
        started_at, cpu_seconds, peak_memory, pid: What is known of that run, as in ``RunInfo``.
        reason: Why it is dead, cancelled or expired.
        errors: Failed attempts, oldest first.
    """

    id: str
    task: str
    payload: bytes = b"{}"
    codec: str = "json"
    queue: str = "default"
    priority: int = 0
    delay: int | None = None
    due: int | None = None
    ttl: int | None = None
    expires_at: int | None = None
    unique: str | None = None
    unique_scope: UniqueScope = UniqueScope.LIVE
    unique_period: int = 0
    options: bytes | None = None

    state: JobState = JobState.AVAILABLE
    attempts: int = 0
    crashes: int = 0
    releases: int = 0
    claims: int = 0
    enqueued_at: int = 0
    finished_at: int | None = None
    run_seconds: float | None = None
    started_at: int | None = None
    cpu_seconds: float | None = None
    peak_memory: int | None = None
    pid: int | None = None
    worker: str | None = None
    parked: bool = False
    cancel_requested: bool = False
    progress: Progress | None = None
    result: bytes | None = None
    reason: str = ""
    errors: tuple[ErrorInfo, ...] = ()


class Lease(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A claimed job on its way to a child: what it takes to run it, and nothing else.

    Attributes:
        key: The broker's own handle of the job; opaque to everybody else.
        token: The claim's fencing token.
        attempts: Failed runs so far; this run is number ``attempts + 1``.
        ttl: ms left until the job expires, measured by the broker at the claim; None for never.
    """

    key: int | str
    token: int
    id: str
    task: str
    queue: str
    payload: bytes
    codec: str
    attempts: int
    crashes: int
    releases: int
    enqueued_at: int
    ttl: int | None
    options: bytes | None
    priority: int = 0


class Outcome(msgspec.Struct, array_like=True, gc=False):
    """What became of one claim. The broker makes it so, in one step, if the token still holds.

    A completion has no charge, reason or error.

    Attributes:
        key, token, id, task, queue: As in the lease.
        state: The job's next state, one of ``TRANSITIONS[RUNNING]``.
        charge: The counter that goes up by one.
        delay: ms until it is due, for ``retryable`` and ``scheduled``.
        result: Encoded return value, or None for None or when it is not kept.
        keep: ms to keep the job with its result; None for the app's retention.
        run_seconds: Time from start to end of the run.
        reason: For ``dead``, ``cancelled`` and ``expired``.
        error: The failed attempt, when there is one.
        started_at, cpu_seconds, peak_memory, pid: As in ``RunInfo``; ``started_at`` is None if it did not run.
        log: The run's log, from ``encode_log``; None if it logged nothing.
        stored: The job's own transaction has made it so; for workers.
    """

    key: int | str
    token: int
    id: str
    task: str
    queue: str
    state: JobState
    run_seconds: float = 0.0
    result: bytes | None = None
    charge: Charge = Charge.NONE
    delay: int = 0
    keep: int | None = None
    reason: str = ""
    error: ErrorInfo | None = None
    started_at: int | None = None
    cpu_seconds: float | None = None
    peak_memory: int | None = None
    pid: int | None = None
    log: bytes | None = None
    stored: bool = False


class LogLine(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One call of ``ctx.log``.

    Attributes:
        at: When, ms since the epoch by the clock of the process that ran the job.
        level: ``DEBUG``, ``INFO``, ``WARNING``, ``ERROR``, ``CRITICAL``, or a level of the app's own.
        message: The text, with its traceback if it has one.
    """

    at: int
    level: str
    message: str


class Stack(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a run was: ``text`` for people, taken ``at`` an instant (ms since the epoch, by the broker's clock)."""

    at: int
    text: str


class RunInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of one run of a job.

    Attributes:
        token: The claim's number; it tells the runs of a job apart.
        attempt: Which run it was as the job saw it, from 1. One that was given back is repeated under its number.
        end: ``completed``, ``failed``, ``crashed`` (the process died under it), ``released``, ``snoozed``,
            ``cancelled``; ``lost`` when nobody told its end; empty while it runs.
        worker: The id of the worker that ran it.
        pid: The process that ran it.
        started_at: ms since the epoch, by the clock of the machine that ran it.
        run_seconds: From its start to its end; ``started_at`` and this give the instant when it ended.
        cpu_seconds: CPU of the thread while a plain function ran, or of a coroutine's own steps; not of tasks and
            threads that it started. What took less than a millisecond counts as if it had been CPU. None if nobody
            could tell.
        peak_memory: The most bytes that the process had resident until then; other jobs ran in it, too.
        lines: What ``ctx.log`` was last told, bounded by the app's ``log_lines`` and ``log_bytes``.
        left_out: How many earlier lines are not kept.
        stack: Where it was when somebody last asked.
    """

    token: int
    attempt: int
    end: str = ""
    worker: str = ""
    pid: int | None = None
    started_at: int | None = None
    run_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory: int | None = None
    lines: tuple[LogLine, ...] = ()
    left_out: int = 0
    stack: Stack | None = None


KEPT_RUNS = 20
"""A job's last so many runs are kept."""
MAX_STACK = 16 << 10
"""The most characters of a stack that are kept."""

_MEASURES = ("started_at", "run_seconds", "cpu_seconds", "peak_memory", "pid")
_ENDS = {Charge.ATTEMPT: "failed", Charge.CRASH: "crashed", Charge.RELEASE: "released"}
_LOG = msgspec.json.Decoder(tuple[int, tuple[LogLine, ...]])


def measures(of: Outcome | Job) -> dict[str, Any]:
    """When a run started, how long it took, and what it used, by the names of ``RunInfo``; empty if it did not run."""
    return {} if of.started_at is None else {name: getattr(of, name) for name in _MEASURES}


def end_of_run(state: JobState, charge: Charge = Charge.NONE) -> str:
    """How a run ended, in the words of ``RunInfo.end``."""
    return _ENDS.get(charge) or {"scheduled": "snoozed", "available": "released"}.get(state, state.value)


def encode_log(lines: Sequence[LogLine], left_out: int) -> bytes:
    """A run's log as it travels and is stored."""
    return msgspec.json.encode((left_out, lines))


def decode_log(encoded: bytes | str | None) -> dict[str, Any]:
    """``lines`` and ``left_out`` of ``RunInfo``."""
    if not encoded:
        return {}
    left_out, lines = _LOG.decode(encoded)
    return {"lines": lines, "left_out": left_out}


_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)
_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\s/\\]{1,255}")


def new_id() -> str:
    """A fresh UUIDv7 as text: unique everywhere, ordered by creation to the millisecond (RFC 9562, 5.7)."""
    now = SYSTEM.now()
    random = os.urandom(10).hex()
    variant = _VARIANT[random[3]]
    return f"{now >> 16:08x}-{now & 0xFFFF:04x}-7{random[:3]}-{variant}{random[4:7]}-{random[7:19]}"


def check_id(value: str) -> str:
    """Returns ``value`` if it is a valid job id, else raises ``OptionError``."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise OptionError(f"id={shown(value)} is no job id; use 1 to 128 of A-Z a-z 0-9 _ . : -")
    return value


def check_name(value: str, what: str) -> str:
    """Returns ``value`` if it can name a task or a queue, else raises ``OptionError``.

    A name is 1..255 printable characters without spaces, slashes or backslashes.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value) or not value.isprintable() or ".." in value:
        raise OptionError(
            f"{what} name {shown(value)} is not usable; use 1 to 255 printable characters, no spaces, slashes or '..'"
        )
    return value


def check_queue(value: str) -> str:
    """Returns ``value`` if it can name the queue of a new job, else raises ``OptionError``.

    Queues of other names may be stored from before; workers that take all queues serve them.
    """
    name = check_name(value, "queue")
    if "," in name or "=" in name:
        raise OptionError(
            f"queue name {shown(name)} is not usable: mouso worker -Q could not name it; use no ',' or '='"
        )
    return name
