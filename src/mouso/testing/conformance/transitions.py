"""Every pair of states: what ``TRANSITIONS`` allows can be reached, and nothing else ever happens.

A job is brought into the first state after one claim, so that every pair is also tried by a worker that comes
late with a token it once held. Then every verb that leads to the second state has a go at it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import product

import pytest

from mouso.brokers.base import Broker
from mouso.job import TRANSITIONS, JobState, Lease
from mouso.testing.clock import FakeClock
from mouso.testing.conformance.kit import (
    LEASE,
    TASK,
    W1,
    W2,
    Suite,
    claim,
    claim_one,
    enqueue,
    make_job,
    outcome,
    read,
    settle,
    state,
)

Attempt = Callable[[Broker, FakeClock, Lease], object]
HOUR = 3600.0


def _settle_as(to: JobState) -> Attempt:
    def attempt(broker: Broker, clock: FakeClock, lease: Lease) -> None:
        with suppress(ValueError):
            settle(broker, outcome(lease, to, delay=1000))

    return attempt


def _after(seconds: float, then: Attempt) -> Attempt:
    def attempt(broker: Broker, clock: FakeClock, lease: Lease) -> None:
        clock.advance(seconds)
        then(broker, clock, lease)

    return attempt


_PROMOTE: Attempt = lambda broker, clock, lease: broker.promote(10)  # noqa: E731  # one of a table of verbs
VERBS: dict[JobState, dict[str, Attempt]] = {
    JobState.PENDING: {},
    JobState.SCHEDULED: {
        "enqueue": lambda broker, clock, lease: broker.enqueue([make_job(lease.id, delay=1000)]),
    },
    JobState.AVAILABLE: {
        "enqueue": lambda broker, clock, lease: broker.enqueue([make_job(lease.id)]),
        "promote": _after(60, _PROMOTE),
        "retry": lambda broker, clock, lease: broker.retry([lease.id]),
        "retire": lambda broker, clock, lease: broker.retire(W1),
        "reap": _after(LEASE + 1, lambda broker, clock, lease: broker.reap(10)),
    },
    JobState.RUNNING: {
        "claim": lambda broker, clock, lease: claim(broker, 10),
        "claim by another": _after(60, lambda broker, clock, lease: claim(broker, 10, worker=W2)),
    },
    JobState.RETRYABLE: {},
    JobState.COMPLETED: {},
    JobState.CANCELLED: {
        "cancel": lambda broker, clock, lease: broker.cancel([lease.id]),
        "cancel and release": lambda broker, clock, lease: (broker.cancel([lease.id]), broker.retire(W1)),
    },
    JobState.EXPIRED: {"promote": _after(2 * HOUR, _PROMOTE)},
    JobState.DEAD: {},
}
ATTEMPTS = {to: {"settle": _settle_as(to), **verbs} for to, verbs in VERBS.items()}


def _bring(broker: Broker, origin: JobState) -> Lease:
    """A job in this state, and the lease it was once claimed with."""
    enqueue(broker, "a", ttl=int(HOUR * 1000))
    lease = claim_one(broker)
    if origin is not JobState.RUNNING:
        assert settle(broker, outcome(lease, origin, delay=5000)) == []
    assert state(broker, "a") is origin
    return lease


class Transitions(Suite):
    """``TRANSITIONS``, pair by pair."""

    @pytest.mark.parametrize(("origin", "to"), list(product(JobState, JobState)))
    def test_allowed_pairs_can_be_reached_and_no_others(
        self, make_broker: Callable[[], Broker], clock: FakeClock, origin: JobState, to: JobState
    ) -> None:
        """``{from: {to: what causes it}}``; a pair that is not here never happens."""
        broker = make_broker()
        if origin is JobState.PENDING:
            if broker.capabilities.workflows:
                pytest.fail("bring a job into PENDING here, with a parent that is not done")
            pytest.skip(f"{broker.capabilities.name} knows no workflows, so no job is ever pending")
        reached = False
        for attempt in ATTEMPTS[to].values():
            broker.delete(["a"])
            lease = _bring(broker, origin)
            before = read(broker, "a")
            attempt(broker, clock, lease)
            after = read(broker, "a")
            if to in TRANSITIONS[origin]:
                reached = reached or after.state is to
            elif to is origin:
                assert after == before
            else:
                assert after.state is origin
                assert (after.claims, after.finished_at) == (before.claims, before.finished_at)
            broker.retire(W1)
            broker.cancel(["a"])
        possible = to in TRANSITIONS[origin] and (to is not JobState.PENDING or broker.capabilities.workflows)
        assert reached is possible

    def test_pending_needs_workflows(self, broker: Broker) -> None:
        """A job that is due later is scheduled, any other available."""
        if broker.capabilities.workflows:
            pytest.skip("this broker has workflows")
        broker.enqueue([make_job("a", state=JobState.PENDING, task=TASK)])
        assert state(broker, "a") is JobState.AVAILABLE
