"""Everything Mouso raises, in one tree, and the record it keeps of a failure.

MousoError
├── ConfigError            a URL, setting, app path, task declaration or store's file that cannot work
│   ├── CapabilityError    the broker lacks what a task asks for
│   └── SchemaError        the store was made by a newer Mouso, or is no store at all
├── StartError             a worker whose processes cannot start now, and may later
├── JobRejected            certainly not stored
│   ├── ArgumentError      (TypeError) an argument that cannot be bound or restored
│   ├── OptionError        (ValueError) an option out of its range
│   ├── PayloadTooLarge
│   └── PayloadTooDeep
├── BrokerError
│   ├── BrokerUnavailable  nothing happened; call again
│   └── OutcomeUnknown     call again with the same ids: it is idempotent
├── BadPayload             stored bytes that do not decode to the task's arguments
├── BadSignature           a stored job that no key of the app vouches for
└── JobError               about one job
    ├── JobFailed          .error tells why
    ├── JobCancelled
    ├── JobExpired
    ├── JobUnknown         no job has this id
    ├── ResultTimeout      (TimeoutError)
    └── ResultError        the result cannot be stored or restored

JobControl                 raised by a task to say what becomes of its job
├── Retry  Snooze  Cancel  Discard
"""

from __future__ import annotations

from datetime import timedelta

import msgspec


class MousoError(Exception):
    """The base of every error that Mouso raises."""


class ConfigError(MousoError):
    """A URL, setting, app path, task declaration or store's file that cannot work as given."""


class CapabilityError(ConfigError):
    """The broker lacks something that a task or a call needs."""


class SchemaError(ConfigError):
    """The store holds a schema that this version of Mouso cannot use."""


class StartError(MousoError):
    """A worker's processes are killed, or a lifespan fails, at its start: as far as anybody knows, not for good."""


class JobRejected(MousoError):
    """The job was refused and is certainly not stored."""


class ArgumentError(JobRejected, TypeError):
    """An argument does not fit the task's signature, or could not be restored by the worker."""


class OptionError(JobRejected, ValueError):
    """A job option is out of its range or of the wrong type."""


class PayloadTooLarge(JobRejected):
    """The encoded arguments exceed the payload limit."""


class PayloadTooDeep(JobRejected):
    """The arguments are nested too deeply, or contain themselves."""


class BrokerError(MousoError):
    """The base of what goes wrong between this process and the broker."""


class BrokerUnavailable(BrokerError):
    """The broker could not be reached or did not answer in time; nothing happened."""


class OutcomeUnknown(BrokerError):
    """The broker may or may not have done it; repeating with the same ids is safe."""


class BadPayload(MousoError):
    """Stored bytes do not decode to what the task declares."""


class BadSignature(MousoError):
    """No key of the app vouches for a stored job: it is unsigned, was altered, or waited too long."""


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One failed attempt, as it is stored and shown.

    Attributes:
        type: Qualified name of the exception's class, such as ``"ValueError"``.
        message: ``str(exception)``, at most 4 KiB.
        traceback: Formatted traceback, at most 16 KiB, or ``""``.
        attempt: Which run failed, from 1.
        reason: Why the job ended when it did: ``attempts timeout discarded bad_payload …``, else ``""``.
        at: When it was recorded, ms since the epoch by the broker's clock.
        worker: The worker that ran it.
        token: The number of the claim that it ran under; see ``RunInfo``, also for the rest.
        started_at, run_seconds, cpu_seconds, peak_memory, pid: What is known of the run; None if it did not run.
    """

    type: str
    message: str = ""
    traceback: str = ""
    attempt: int = 0
    reason: str = ""
    at: int = 0
    worker: str = ""
    token: int = 0
    started_at: int | None = None
    run_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory: int | None = None
    pid: int | None = None


class JobError(MousoError):
    """The base of errors about one job."""

    def __init__(self, message: str, job_id: str = "") -> None:
        super().__init__(message)
        self.job_id = job_id


class JobFailed(JobError):
    """The job ended in the dead-letter queue."""

    def __init__(self, message: str, job_id: str, error: ErrorInfo) -> None:
        super().__init__(message, job_id)
        self.error = error


class JobCancelled(JobError):
    """The job was cancelled before it completed."""


class JobExpired(JobError):
    """The job was not started before its expiry."""


class JobUnknown(JobError):
    """No job has this id: it never existed or is not committed yet, was deleted, or its retention is over."""

    @classmethod
    def of(cls, id: str) -> JobUnknown:
        """The error for an id."""
        return cls(
            f"no job has the id {id}; it was deleted, its retention is over, or the transaction that enqueued it is not"
            " committed",
            id,
        )


class ResultTimeout(JobError, TimeoutError):
    """The job was not final within the time that the caller was ready to wait."""


class ResultError(JobError):
    """A result cannot be encoded, is too large, or does not fit its annotation."""


def shown(value: object) -> str:
    """A value as an error message shows it: its ``repr``, at most 80 characters, whatever the value does about it."""
    try:
        text = repr(value)
    except (Exception, SystemExit):  # ints of more than 4,300 digits, and what others write
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:79]}…"


class JobControl(Exception):
    """The base of what a task raises to say what becomes of its own job."""


class Retry(JobControl):
    """Run this job again after ``delay``; the attempt counts as failed.

    Args:
        delay: Seconds, a timedelta or text such as ``"10m"``; None for the task's back-off.
        reason: Kept with the attempt.

    Attributes:
        exc: The error to record instead if this was the last attempt; see ``Context.retry``.
    """

    exc: BaseException | None = None

    def __init__(self, delay: float | str | timedelta | None = None, reason: str = "") -> None:
        super().__init__(reason or "retry requested")
        self.delay = delay


class Snooze(JobControl):
    """Run this job again after ``delay`` without charging an attempt."""

    def __init__(self, delay: float | str | timedelta, reason: str = "") -> None:
        super().__init__(reason or "snoozed")
        self.delay = delay


class Cancel(JobControl):
    """End this job as cancelled."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "cancelled by the task")


class Discard(JobControl):
    """End this job in the dead-letter queue without further attempts."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "discarded by the task")
