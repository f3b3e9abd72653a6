"""Outcomes that are made in more than one place."""

from __future__ import annotations

import logging

from mouso.errors import ErrorInfo
from mouso.job import Charge, JobState, Lease, Outcome
from mouso.observe.logs import about
from mouso.retry import Decision

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
