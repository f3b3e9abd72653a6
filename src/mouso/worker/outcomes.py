"""Outcomes of what did not complete, and how errors are stored."""

from __future__ import annotations

import logging
import traceback

from mouso.clock import seconds
from mouso.errors import Cancel, Discard, ErrorInfo, JobControl, Snooze
from mouso.job import Charge, JobState, Lease, Outcome
from mouso.observe.logs import about
from mouso.retry import Decision, class_name

_MESSAGE = 4 << 10
_TRACEBACK = 16 << 10

log = logging.getLogger("mouso.job")


def failure(lease: Lease, decision: Decision, info: ErrorInfo) -> Outcome:
    """The outcome of a failed attempt, and its line in the log."""
    if decision.delay is None:
        log.error(
            "job %s (%s) is dead (%s): %s: %s", lease.id, lease.task, decision.reason, info.type, info.message,
            extra=about(lease),
        )  # fmt: skip
        return outcome_of(lease, JobState.DEAD, charge=Charge.ATTEMPT, reason=decision.reason, error=info)
    log.warning(
        "job %s (%s) failed attempt %d, next in %.1f s: %s: %s",
        lease.id, lease.task, info.attempt, decision.delay, info.type, info.message, extra=about(lease),
    )  # fmt: skip
    return outcome_of(lease, JobState.RETRYABLE, charge=Charge.ATTEMPT, delay=int(decision.delay * 1000), error=info)


def release(lease: Lease) -> Outcome:
    """The outcome of a claim that is given back unstarted."""
    return outcome_of(lease, JobState.AVAILABLE, charge=Charge.RELEASE)


def outcome_of(
    lease: Lease,
    state: JobState,
    *,
    charge: Charge = Charge.NONE,
    delay: int = 0,
    reason: str = "",
    error: ErrorInfo | None = None,
) -> Outcome:
    """An outcome of a lease that did not complete."""
    return Outcome(
        lease.key,
        lease.token,
        lease.id,
        lease.task,
        lease.queue,
        state,
        charge=charge,
        delay=delay,
        reason=reason,
        error=error,
    )


def controlled(lease: Lease, error: JobControl) -> Outcome:
    """The outcome that a task has asked for: ``Snooze``, ``Cancel`` or ``Discard``.

    Raises:
        ValueError: The delay of a ``Snooze`` is none.
    """
    match error:
        case Snooze():
            return outcome_of(lease, JobState.SCHEDULED, delay=int(seconds(error.delay, "Snooze delay") * 1000))
        case Cancel():
            return outcome_of(lease, JobState.CANCELLED, reason=describe(error, 0, "").message[:1000])
        case _:
            reason = "discarded" if isinstance(error, Discard) else type(error).__name__
            return failure(lease, Decision(None, reason), describe(error, lease.attempts + 1, reason))


def describe(error: BaseException, attempt: int, reason: str) -> ErrorInfo:
    """An exception as it is stored; whatever its own methods do, this does not raise."""
    try:
        message = f"the task called sys.exit({error.code!r})" if isinstance(error, SystemExit) else str(error)
    except BaseException as broken:
        message = f"<str() of the exception raised {type(broken).__name__}>"
    try:
        text = "".join(traceback.format_exception(error, limit=-50))
    except BaseException:
        text = ""
    if len(text) > _TRACEBACK:
        text = text[: _TRACEBACK // 2] + "\n…\n" + text[-_TRACEBACK // 2 :]
    return ErrorInfo(
        type=class_name(type(error)),
        message=_clean(message[:_MESSAGE]),
        traceback=_clean(text),
        attempt=attempt,
        reason=reason,
    )


def _clean(text: str) -> str:
    """The text without lone surrogates, which no store takes."""
    return text.encode("utf-8", "replace").decode()
